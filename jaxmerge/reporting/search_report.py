"""Ends a search: saves its best merge, and writes rows, figures and page.

K checkpoints.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.gp.acquisition import probabilities
from jaxmerge.bayesopt.study.study import FAILURE, PARTIAL_VALUE
from jaxmerge.bayesopt.trials import ASKED, asked_by, observations, stderr_of
from jaxmerge.evaluation.checkpoint_scores import resolution_text
from jaxmerge.evaluation.domain import Domain
from jaxmerge.evaluation.losses import Losses
from jaxmerge.evaluation.objective import limit_names
from jaxmerge.evaluation.search_method import Findings
from jaxmerge.evaluation.search_plan import Prepared
from jaxmerge.evaluation.search_study import forward_passes
from jaxmerge.evaluation.weight_search import Choice
from jaxmerge.evaluation.weighted_tasks import SplitTasks
from jaxmerge.files import make_directory
from jaxmerge.formats.records.metadata import versions
from jaxmerge.formats.records.provenance import SEEN, Provenance, seen_items
from jaxmerge.locks import exclusive
from jaxmerge.model.loss import UNIT
from jaxmerge.progress import Progress
from jaxmerge.redaction import presentable
from jaxmerge.reporting import figures, precision, search_figures
from jaxmerge.reporting.page import text_table, write_report
from jaxmerge.reporting.posterior_plots import posterior_plots
from jaxmerge.reporting.results import (
  STOPPED_EARLY,
  Point,
  Precision,
  Results,
  Row,
  Trial,
  tokens_saved,
)
from jaxmerge.reporting.rows import Comparison

# When a searcher wrote which merge and report, in the study's attributes.
_WRITTEN = "written"


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


def write(
  study: Study,
  ready: Prepared,
  losses: Losses,
  best: Choice,
  began: float,
  commands: Sequence[str],
  progress: Progress,
) -> epath.Path:
  """Saves the best merge and the report, unless another searcher has."""
  path, domain, report = ready.output, ready.search.domain, ready.places.report
  found = ready.search.findings(study)
  weights_GxK = domain.weights(best.params)
  folder = make_directory(path.parent.parent)
  result = {
    "trials": len(found.trials),
    "chosen": best.number,
    "report": ready.places.report_dir,
    "baselines": list(ready.baselines),
  }
  with exclusive(folder / "writer", f"the merge in {folder}", wait=True):
    at, written = study.user_attrs.get(_WRITTEN, (0.0, None))
    is_here = path.exists() and report.exists()
    if is_here and at > began and written == result:
      progress.note("search", f"another searcher has written {path}")
      return path
    groups = dict(zip(domain.groups.names_G, weights_GxK))
    comparison = Comparison(ready, losses)
    passes = forward_passes(found.trials, losses.merged.last)
    row = comparison.merged(best.params, passes)
    provenance = Provenance(
      ready.search.method.name,
      domain.mean_weights(best.params),
      groups=groups if len(groups) > 1 else {},
      parameters={"negative": True} if domain.bounds.negative else {},
      search={**comparison.measured(row), **_seen(losses)},
    )
    losses.save(path, weights_GxK, provenance)
    search = FinishedSearch(ready, losses, found, best, commands)
    known = precision.told(study, ready, losses, found, best, progress)
    _report(search, comparison, row, known, progress)
    study.set_user_attr(_WRITTEN, (time.time(), result))
  return path


def _seen(losses: Losses) -> dict[str, Any]:
  """Names what the weights were chosen by: evaluate does not report on it."""
  last, items = losses.merged.last, losses.items
  if isinstance(items, SplitTasks):
    return {SEEN: items.seen(last)}
  return {SEEN: [seen_items(items.content, "search", len(last.values_N))]}


def _report(
  search: FinishedSearch,
  comparison: Comparison,
  row: Row,
  known: Precision | None,
  progress: Progress,
) -> None:
  """Scores the baselines and writes report.html, figures and results.json."""
  ready = search.ready
  domain = ready.search.domain
  unit, direction = comparison.last.unit, comparison.last.direction
  rows = comparison.rows(row, progress)
  trail = comparison.points(rows, progress)
  later = [p for p in trail if p.step >= domain.steps[-1]]
  tokens = later[0].tokens if later else 0
  # Checkpoints of others may not say how many tokens they have seen.
  merged = rows[-1].report_loss
  saved = tokens_saved(merged, later, direction) if tokens else None
  goal = ready.goal
  tasks = goal.tasks if goal else ()
  trials = [report_trial(t, domain, tasks) for t in search.found.trials]
  best = search.best.number
  study = ready.places.study_name
  results = Results(
    rows,
    trials,
    best,
    tokens,
    saved,
    unit,
    direction,
    study,
    known,
    objective=ready.evaluator.summary if goal else "",
    constraint=goal.constraint if goal else "",
    tasks=comparison.tasks(),
  )
  page = write_report(
    ready.places.report,
    title=f"Merging {ready.places.workdir.name}",
    results=results,
    figures=_figures(search, results, trail, progress),
    facts=_facts(search),
    commands=search.commands,
  )
  print(text_table(results))
  if known is not None:
    advice = known.advice[:1].upper() + known.advice[1:]
    progress.note("precision", f"{known.cost} {advice}".strip())
  progress.note("report", str(page))


def report_trial(
  trial: FrozenTrial, domain: Domain, tasks: Sequence[str] = ()
) -> Trial:
  """Describes a trial that has ended; of several groups by mean weights.

  Args:
    trial: of a search.
    domain: of its parameters.
    tasks: of the search, to name those that its constraints are of.
  """
  loss, failure = trial.value, ""
  if trial.state == TrialState.PRUNED:
    loss = float(trial.user_attrs.get(PARTIAL_VALUE, math.nan))
    failure = STOPPED_EARLY
  elif loss is None:
    loss = math.nan
    failure = str(trial.user_attrs.get(FAILURE, "no reason recorded"))
  stderr = stderr_of(trial)
  record = trial.system_attrs.get(ASKED, {})
  gains = record.get("gains", {})
  odds_J = probabilities(np.array(list(gains.values()))) if gains else ()
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
    breaks=[
      task
      for task, name in zip(tasks, limit_names(len(tasks)))
      if trial.constraints.get(name, 0.0) > 0
    ],
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
  search: FinishedSearch,
  results: Results,
  trail: Sequence[Point],
  progress: Progress,
) -> dict[str, bytes]:
  """The PNG figures by name."""
  asked, workdir = search.ready.search, search.ready.places.workdir
  draw: list[Callable[[], Mapping[str, bytes]]] = [
    lambda: {"baselines": figures.baselines(results)},
    lambda: {"convergence": search_figures.convergence(results)},
  ]
  training = training_losses(workdir)
  if training and results.unit == UNIT:
    curve = figures.training_curve
    draw.append(lambda: {"training_curve": curve(training, trail, results)})
  if asked.method.has_posterior and len(asked.domain.groups.names_G) == 1:
    told = observations(*search.found[:3], asked.use_gradients)
    assert told is not None, "no trial has a score"
    draw.append(lambda: posterior_plots(told, results, asked.domain.bounds))
  if any(trial.odds for trial in results.trials):
    draw.append(lambda: {"hedge": search_figures.hedge(results)})
  if search_figures.predicted(results):
    draw.append(lambda: {"calibration": search_figures.calibration(results)})
  draw.append(lambda: asked.method.figures(search, results))
  found: dict[str, bytes] = {}
  for number, one in enumerate(draw, start=1):
    found.update(one())
    progress.stage("figures", number, len(draw), next(reversed(found)))
  return found


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
  tasks = {}
  if (goal := search.ready.goal) is not None:
    losses = search.losses
    tasks["resolution"] = resolution_text(losses.alone_K, goal)
  return {
    "tasks" if tasks else "corpus": search.losses.items.source,
    **tasks,
    "vocabulary": f"{metadata.model['vocab_size']:,} tokens",
    "parameters": f"{count:,}",
    "run": metadata.run_id or "not known",
    **(
      {"weights": f"each {domain.bounds.reach}"}
      if domain.bounds.negative
      else {}
    ),
    "merged checkpoint": presentable(str(search.ready.output)),
    **(groups if len(groups) > 1 else {}),
    "devices": f"{jax.device_count()} x {', '.join(kinds)}",
    **versions(),
  }
