"""The report of a finished search: rows, figures, page."""

import dataclasses
import json
import math
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.gp import hedge
from jaxmerge.bayesopt.gp.padding import Observations
from jaxmerge.bayesopt.study.study import FAILURE, PARTIAL_VALUE
from jaxmerge.bayesopt.trials import ASKED, asked_by, stderr_of
from jaxmerge.evaluation.objective import Domain
from jaxmerge.evaluation.search_method import SearchMethod
from jaxmerge.evaluation.weight_search import Choice
from jaxmerge.formats.records.metadata import versions
from jaxmerge.model.loss import UNIT
from jaxmerge.progress import Progress
from jaxmerge.redaction import presentable
from jaxmerge.reporting import figures, search_figures
from jaxmerge.reporting.page import write_report
from jaxmerge.reporting.posterior_plots import posterior_plots
from jaxmerge.reporting.results import (
  STOPPED_EARLY,
  Point,
  Results,
  Trial,
  tokens_saved,
)
from jaxmerge.reporting.rows import Comparison
from jaxmerge.reporting.table import text_table


@dataclasses.dataclass(frozen=True)
class FinishedSearch:
  """What a finished search knows.

  Attributes:
    workdir: of the run.
    comparison: scores on both splits; knows the weights' domain and the trail.
    method: that chose the weights.
    trials: every trial of the budget that has ended, by number: complete,
      failed or pruned.
    observations: what the process knows of them, in maximisation sign.
    best: what the search method recommends.
    baselines: plain searches to compare with, of bayesopt.baselines.
    seed: of their draws.
    merged: where the merged checkpoint lies.
    commands: what a user types to get this report again.
    corpus: name of the text that was scored on.
  """

  workdir: epath.Path
  comparison: Comparison
  method: SearchMethod
  trials: Sequence[FrozenTrial]
  observations: Observations
  best: Choice
  baselines: Sequence[str]
  seed: int
  merged: epath.Path
  commands: Sequence[str]
  corpus: str


def write_search_report(
  directory: epath.Path, search: FinishedSearch, progress: Progress
) -> Results:
  """Scores the baselines and writes report.html, figures and results.json.

  Args:
    directory: what else is in it stays.
    search: to report.
    progress: told how far the work is.
  """
  comparison = search.comparison
  domain, direction = comparison.domain, comparison.direction
  rows = comparison.rows(
    search.method.name,
    search.best.params,
    len(search.trials),
    search.baselines,
    search.seed,
    progress,
  )
  points = comparison.points(rows, progress)
  later = [p for p in points if p.step >= domain.steps[-1]]
  tokens = later[0].tokens if later else 0
  # Checkpoints of others may not say how many tokens they have seen.
  saved = None
  if tokens:
    saved = tokens_saved(rows[-1].report_loss, later, direction)
  trials = [report_trial(trial, domain) for trial in search.trials]
  results = Results(
    rows,
    trials,
    search.best.number,
    tokens,
    saved,
    comparison.unit,
    direction,
  )
  page = write_report(
    directory,
    title=f"Merging {search.workdir.name}",
    results=results,
    figures=_figures(search, results, points),
    facts=_facts(search),
    commands=search.commands,
  )
  print(text_table(results))
  progress.note("report", str(page))
  return results


def report_trial(trial: FrozenTrial, domain: Domain) -> Trial:
  """What a report shows of a trial that has ended: complete, failed or pruned.

  Of weights of several groups it shows the mean.
  """
  loss, failure = math.nan, ""
  if trial.state == TrialState.COMPLETE:
    assert trial.value is not None
    loss = trial.value
  elif trial.state == TrialState.PRUNED:
    loss = float(trial.user_attrs.get(PARTIAL_VALUE, math.nan))
    failure = STOPPED_EARLY
  else:
    failure = str(trial.user_attrs.get(FAILURE, "no reason recorded"))
  stderr = stderr_of(trial)
  record = trial.system_attrs.get(ASKED, {})
  gains = record.get("gains", {})
  odds_J = hedge.probabilities(np.array(list(gains.values()))) if gains else ()
  predicted = record.get("predicted")
  return Trial(
    number=trial.number,
    weights=dict(zip(domain.steps, domain.mean_weights(trial.params))),
    loss=loss,
    stderr=stderr,
    asked_by=asked_by(trial),
    odds=dict(zip(gains, map(float, odds_J))),
    predicted_mean=predicted and float(predicted["mean"]),
    # The sampler predicts the loss itself; its measurement is noisy.
    predicted_std=predicted
    and math.hypot(predicted["std"], predicted["noise_share"] * stderr),
    failure=failure,
  )


def training_losses(workdir: epath.Path) -> list[Point]:
  """The finite training losses that a run has logged, by step.

  A last line that a killed run has cut short is left out.
  """
  path = workdir / "metrics.jsonl"
  found = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      record = json.loads(line)
    except ValueError:
      continue
    if math.isfinite(record["loss"]):
      found.append(Point(record["step"], record["tokens"], record["loss"]))
  return found


def _figures(
  search: FinishedSearch, results: Results, points: Sequence[Point]
) -> dict[str, bytes]:
  """The PNG figures by name."""
  domain = search.comparison.domain
  found = {
    "baselines": figures.baselines(results),
    "convergence": search_figures.convergence(results),
  }
  training = training_losses(search.workdir)
  if training and results.unit == UNIT:
    found["training_curve"] = figures.training_curve(training, points, results)
  if search.method.has_posterior and len(domain.groups.names_G) == 1:
    found |= posterior_plots(search.observations, results, domain.bounds)
  if any(trial.odds for trial in results.trials):
    found["hedge"] = search_figures.hedge(results)
  if search_figures.predicted(results):
    found["calibration"] = search_figures.calibration(results)
  return {**found, **search.method.figures(search, results)}


def _facts(search: FinishedSearch) -> dict[str, str]:
  """What the run was, and the weights of groups where they differ."""
  domain = search.comparison.domain
  metadata = search.comparison.trail[-1].metadata
  leaves = metadata.leaves["params"].values()
  count = sum(math.prod(leaf["shape"]) for leaf in leaves)
  kinds = sorted({device.device_kind for device in jax.devices()})
  groups = {
    f"weights of {name}": ", ".join(
      f"{step}: {w:.3f}" for step, w in zip(domain.steps, weights_K)
    )
    for name, weights_K in zip(
      domain.groups.names_G, domain.weights(search.best.params)
    )
  }
  return {
    "corpus": search.corpus,
    "vocabulary": f"{metadata.model['vocab_size']:,} tokens",
    "parameters": f"{count:,}",
    "run": metadata.run_id or "not known",
    "merged checkpoint": presentable(str(search.merged)),
    **(groups if len(groups) > 1 else {}),
    "devices": f"{jax.device_count()} x {', '.join(kinds)}",
    **versions(),
  }
