"""The report of a finished search: rows, figures, page."""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.gp import hedge
from jaxmerge.bayesopt.study.study import FAILURE, PARTIAL_VALUE
from jaxmerge.bayesopt.trials import ASKED, asked_by, observations, stderr_of
from jaxmerge.evaluation.objective import Domain
from jaxmerge.evaluation.search_method import Findings
from jaxmerge.evaluation.search_plan import Prepared
from jaxmerge.evaluation.search_study import Losses
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


class FinishedSearch(NamedTuple):
  """A finished search.

  Attributes:
    ready, losses: that it was run with.
    found: every trial of the budget that has ended: complete, failed or pruned.
    best: what the search method recommends.
    commands: to type to get its report again.
  """

  ready: Prepared
  losses: Losses
  found: Findings
  best: Choice
  commands: Sequence[str]


def write_search_report(search: FinishedSearch, progress: Progress) -> None:
  """Scores the baselines and writes report.html, figures and results.json."""
  ready = search.ready
  domain = ready.search.domain
  comparison = Comparison(ready, search.losses)
  direction = comparison.direction
  rows = comparison.rows(search.best.params, len(search.found.trials), progress)
  points = comparison.points(rows, progress)
  later = [p for p in points if p.step >= domain.steps[-1]]
  tokens = later[0].tokens if later else 0
  # Checkpoints of others may not say how many tokens they have seen.
  merged = rows[-1].report_loss
  saved = tokens_saved(merged, later, direction) if tokens else None
  trials = [report_trial(trial, domain) for trial in search.found.trials]
  best, unit = search.best.number, comparison.unit
  results = Results(rows, trials, best, tokens, saved, unit, direction)
  page = write_report(
    ready.report,
    title=f"Merging {ready.workdir.name}",
    results=results,
    figures=_figures(search, results, points),
    facts=_facts(search),
    commands=search.commands,
  )
  print(text_table(results))
  progress.note("report", str(page))


def report_trial(trial: FrozenTrial, domain: Domain) -> Trial:
  """Describes a trial that has ended; of several groups by mean weights."""
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
  asked, workdir = search.ready.search, search.ready.workdir
  found = {
    "baselines": figures.baselines(results),
    "convergence": search_figures.convergence(results),
  }
  training = training_losses(workdir)
  if training and results.unit == UNIT:
    found["training_curve"] = figures.training_curve(training, points, results)
  if asked.method.has_posterior and len(asked.domain.groups.names_G) == 1:
    told = observations(*search.found, asked.use_gradients)
    assert told is not None, "no trial has a score"
    found |= posterior_plots(told, results, asked.domain.bounds)
  if any(trial.odds for trial in results.trials):
    found["hedge"] = search_figures.hedge(results)
  if search_figures.predicted(results):
    found["calibration"] = search_figures.calibration(results)
  return {**found, **asked.method.figures(search, results)}


def _facts(search: FinishedSearch) -> dict[str, str]:
  """Describes the run, and the weights of groups where they differ."""
  domain = search.ready.search.domain
  metadata = search.ready.trail[-1].metadata
  leaves = metadata.leaves["params"].values()
  count = sum(math.prod(leaf["shape"]) for leaf in leaves)
  kinds = sorted({device.device_kind for device in jax.devices()})
  groups = {}
  weights_GxK = domain.weights(search.best.params)
  for name, weights_K in zip(domain.groups.names_G, weights_GxK):
    told = (f"{step}: {w:.3f}" for step, w in zip(domain.steps, weights_K))
    groups[f"weights of {name}"] = ", ".join(told)
  return {
    "corpus": search.losses.items.source,
    "vocabulary": f"{metadata.model['vocab_size']:,} tokens",
    "parameters": f"{count:,}",
    "run": metadata.run_id or "not known",
    "merged checkpoint": presentable(str(search.ready.output)),
    **(groups if len(groups) > 1 else {}),
    "devices": f"{jax.device_count()} x {', '.join(kinds)}",
    **versions(),
  }
