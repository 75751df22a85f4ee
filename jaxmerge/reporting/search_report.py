"""The report of a finished search: rows, figures, page."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from optuna.trial import FrozenTrial

from jaxmerge.bayesopt.padding import Observations
from jaxmerge.checkpoints.metadata import versions
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.evaluation.objective import Domain, weights_of
from jaxmerge.reporting import figures, hedge_figures, search_figures
from jaxmerge.reporting.beliefs import draw_beliefs
from jaxmerge.reporting.comparison import Comparison
from jaxmerge.reporting.metrics import read_metrics
from jaxmerge.reporting.report import write_report
from jaxmerge.reporting.results import Results, Row, Trial, tokens_saved
from jaxmerge.reporting.study_trials import study_trials
from jaxmerge.reporting.table import text_table
from jaxmerge.shown import presentable
from jaxmerge.training.loop import Progress


@dataclasses.dataclass(frozen=True)
class SearchFacts:
  """What a finished search knows.

  Attributes:
    workdir: of the run.
    trail: the run's checkpoints by step (the inputs, where they were given).
    where: shardings of a parameter tree.
    trials: every trial of the budget that has ended, by number: complete,
      failed or pruned.
    told: what the process knows of them, in maximisation sign.
    best: the one that was chosen.
    domain: of the weights.
    merge: makes the tree of weights (GxK).
    baselines: plain searches to compare with, of bayesopt.controls.
    seed: of their draws.
    merged: where the merged checkpoint lies.
    commands: what a user types to get this report again.
    corpus: name of the text that was scored on.
  """

  workdir: epath.Path
  trail: Sequence[Checkpoint]
  where: Any
  trials: Sequence[FrozenTrial]
  told: Observations
  best: FrozenTrial
  domain: Domain
  merge: Callable[[Sequence[Sequence[float]]], Any]
  baselines: Sequence[str]
  seed: int
  merged: epath.Path
  commands: Sequence[str]
  corpus: str


def write_search_report(
  directory: epath.Path,
  comparison: Comparison,
  facts: SearchFacts,
  progress: Progress,
) -> Results:
  """Scores the baselines and writes report.html, figures and results.json.

  Args:
    directory: what else is in it stays.
    comparison: scores on both splits.
    facts: of the search.
    progress: called with a stage, evaluations done, in all and a note.
  """
  rows = _rows(comparison, facts, progress)
  last_step = max(weights_of(facts.best))
  points = _points(comparison, facts, rows, progress)
  merged = rows[-1]
  tokens = next(p.tokens for p in points if p.step == last_step)
  later = [(p.tokens, p.loss) for p in points if p.step >= last_step]
  # Checkpoints of others may not say how many tokens they have seen.
  saved = tokens_saved(merged.report_loss, tokens, later) if tokens else None
  results = Results(tuple(rows), tokens, saved)
  trials = study_trials(facts.trials, facts.domain)
  with tempfile.TemporaryDirectory() as folder:
    images = _figures(epath.Path(folder), facts, results, points, trials)
    page = write_report(
      directory,
      title=f"Merging {facts.workdir.name}",
      results=results,
      figures=images,
      facts=_run_facts(facts),
      commands=facts.commands,
      trials=trials,
    )
  print(text_table(results))
  progress("report", 0, 0, str(page))
  return results


def _rows(
  comparison: Comparison, facts: SearchFacts, progress: Progress
) -> list[Row]:
  """The last checkpoint, each other up to it, and the three ways to merge.

  A checkpoint that has diverged, without a finite loss, gets no row.
  """
  last_step = max(weights_of(facts.best))
  others = [c for c in facts.trail if c.metadata.step < last_step]
  rows = [comparison.last()]
  for number, checkpoint in enumerate(others, start=1):
    row = comparison.single(checkpoint, facts.where)
    if _is_finite(row):
      rows.append(row)
    progress("baselines", number, len(others), row.name)
  evaluations = len(facts.trials)
  others_found = [comparison.uniform()]
  for name in facts.baselines:
    others_found += comparison.control(
      name, facts.domain.reach, evaluations, facts.seed, progress
    )
  # With a checkpoint that has diverged even the mean has no loss.
  rows += [r for r in others_found if _is_finite(r)]
  chosen = facts.best.params
  tree = facts.merge(facts.domain.weights(chosen))
  weights_K = facts.domain.mean_weights(chosen)
  rows.append(comparison.of_tree("gp_hedge", tree, weights_K, evaluations))
  return rows


def _is_finite(row: Row) -> bool:
  return math.isfinite(row.report_loss) and math.isfinite(row.search_loss)


def _points(
  comparison: Comparison,
  facts: SearchFacts,
  rows: Sequence[Row],
  progress: Progress,
) -> list[figures.Point]:
  """Finite report losses of the checkpoints of the trail, by step."""
  known = {max(weights_of(facts.best)): rows[0].report_loss}
  known |= {
    step: row.report_loss
    for row in rows
    if row.name.startswith("step_")
    for step in row.weights
  }
  points: list[figures.Point] = []
  for number, checkpoint in enumerate(facts.trail, start=1):
    step = checkpoint.metadata.step
    if step not in known:
      known[step] = comparison.report_loss(checkpoint, facts.where)
    if math.isfinite(known[step]):
      tokens = checkpoint.metadata.tokens
      points.append(figures.Point(step, tokens, known[step]))
    progress("trail", number, len(facts.trail), f"step {step}")
  return points


def _figures(
  folder: epath.Path,
  facts: SearchFacts,
  results: Results,
  points: Sequence[figures.Point],
  trials: Sequence[Trial],
) -> dict[str, bytes]:
  """The PNG figures by name."""
  merged = results.row("gp_hedge")
  steps = sorted(merged.weights)
  metrics = facts.workdir / "metrics.jsonl"
  if metrics.exists():
    records = read_metrics(metrics)
    figures.training_curve(
      folder / "training_curve.png",
      [
        figures.Point(r["step"], r["tokens"], r["loss"])
        for r in records
        if math.isfinite(r["loss"])
      ],
      points,
      figures.Merged(results.tokens_trained, merged.report_loss, _label(steps)),
      results.tokens_saved,
    )
  if len(facts.domain.groups.names_G) == 1:
    draw_beliefs(
      folder, facts.told, trials, steps, facts.domain.reach, facts.best.number
    )
  if any(trial.odds for trial in trials):
    hedge_figures.hedge(folder / "hedge.png", trials)
  if hedge_figures.predicted(trials):
    hedge_figures.calibration(folder / "calibration.png", trials)
  search_figures.convergence(
    folder / "convergence.png",
    trials,
    {
      row.name: row.search_loss
      for row in results.rows
      if row.name in ("last", "uniform", *facts.baselines)
    },
  )
  figures.baselines(folder / "baselines.png", results.rows)
  return {p.stem: p.read_bytes() for p in sorted(folder.glob("*.png"))}


def _label(steps: Sequence[int]) -> str:
  return "merged " + " + ".join(map(str, steps))


def _group_facts(facts: SearchFacts) -> dict[str, str]:
  """The weights of each group of parameters, where they differ."""
  names_G = facts.domain.groups.names_G
  if len(names_G) == 1:
    return {}
  rows = facts.domain.weights(facts.best.params)
  return {
    f"weights of {name}": ", ".join(
      f"{step}: {w:.3f}" for step, w in zip(facts.domain.steps, weights_K)
    )
    for name, weights_K in zip(names_G, rows)
  }


def _run_facts(facts: SearchFacts) -> dict[str, str]:
  metadata = facts.trail[-1].metadata
  leaves = metadata.leaves["params"].values()
  count = sum(math.prod(leaf["shape"]) for leaf in leaves)
  kinds = sorted({device.device_kind for device in jax.devices()})
  return {
    "corpus": facts.corpus,
    "vocabulary": f"{metadata.model['vocab_size']:,} tokens",
    "parameters": f"{count:,}",
    "run": metadata.run_id or "not known",
    "merged checkpoint": presentable(str(facts.merged)),
    **_group_facts(facts),
    "devices": f"{jax.device_count()} x {', '.join(kinds)}",
    **versions(),
  }
