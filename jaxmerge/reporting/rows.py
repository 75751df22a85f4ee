"""Rows of the table of baselines, scored on both splits.

Every choice is made on the search split; the report split is scored once for
each finished choice. K checkpoints.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

from jaxmerge.bayesopt.baselines import BASELINES, num_evaluations
from jaxmerge.errors import InputError
from jaxmerge.evaluation.losses import Losses, Scores
from jaxmerge.evaluation.score import Score, WeightedSum, as_loss, noun
from jaxmerge.evaluation.search_plan import Prepared
from jaxmerge.evaluation.statistics import difference
from jaxmerge.merging import weight_rules
from jaxmerge.merging.differences import gram_weights
from jaxmerge.merging.method import METHODS, count_problems
from jaxmerge.progress import Progress
from jaxmerge.reporting.page import PAGE
from jaxmerge.reporting.results import Point, Row
from jaxmerge.reporting.task_rows import TaskRow, task_rows
from jaxmerge.simplex.bounds import Bounds, weights_from_unit

_NO_LOSS = 1e6


class Comparison:
  """Scores ways to get a model out of K checkpoints against the last one."""

  def __init__(self, ready: Prepared, losses: Losses):
    self._ready = ready
    self._steps = ready.search.domain.steps
    self._losses = losses
    self.last = losses.of_step_on_report(self._steps[-1])
    self._merged: Score | None = None

  def merged(self, params: dict[str, float], evaluations: int) -> Row:
    """The row of the search's merge.

    Args:
      params: that the search recommends.
      evaluations: that it took, in forward passes.
    """
    domain, method, *_ = self._ready.search
    scores = self._losses.of_merge(domain.weights(params))
    self._merged = scores.report
    return self._row(
      method.name,
      scores,
      dict(zip(domain.steps, domain.mean_weights(params))),
      evaluations,
    )

  def rows(self, merged: Row, progress: Progress) -> list[Row]:
    """The last checkpoint, those before it, the baselines and the search.

    Skips models that have diverged, alone or merged.

    Args:
      merged: the search's, of as many evaluations as each baseline gets.
      progress: told how far the work is.
    """
    domain = self._ready.search.domain
    count = len(domain.steps)
    last = self._average("last", [0.0] * (count - 1) + [1.0], 1)
    earlier = [
      c for c in self._ready.trail if c.metadata.step < domain.steps[-1]
    ]
    found = []
    for number, checkpoint in enumerate(earlier, start=1):
      step = checkpoint.metadata.step
      name, weights = f"step_{step}", {step: 1.0}
      found.append(self._row(name, self._losses.of_step(step), weights, 1))
      progress.stage("baselines", number, len(earlier), name)
    found.append(self._average("uniform", weight_rules.uniform(count), 1))
    found += self._accelerated()
    for name in self._ready.baselines:
      found += self._baseline(name, merged.evaluations, progress)
    finite = [r for r in found if math.isfinite(r.search_loss + r.report_loss)]
    return [last, *finite, merged]

  def tasks(self) -> list[TaskRow]:
    """The merge on each task of a search of tasks, behind `merged`."""
    last, merged = self.last, self._merged
    if isinstance(last, WeightedSum) and isinstance(merged, WeightedSum):
      return task_rows(last, merged)
    return []

  def measured(self, row: Row) -> dict[str, float | str]:
    """The numbers of a merge for its model card; none if one is not finite."""
    numbers = {
      "last": self.last.mean,
      "merged": row.report_loss,
      "delta": row.report_delta_vs_last,
      "stderr": row.report_delta_stderr,
    }
    if not all(map(math.isfinite, numbers.values())):
      return {}
    places = self._ready.places
    report = places.report.relative_to(places.workdir) / PAGE
    told = {"noun": noun(self.last.direction), "unit": self.last.unit}
    if self._ready.goal is not None:
      told["objective"] = self._ready.evaluator.summary
    return {**numbers, **told, "report": str(report)}

  def points(self, rows: Sequence[Row], progress: Progress) -> list[Point]:
    """Finite report losses of the trail; scores no model of `rows` again."""
    trail = self._ready.trail
    known = {row.steps[0]: row.report_loss for row in rows if row.is_single}
    found = []
    for number, checkpoint in enumerate(trail, start=1):
      step = checkpoint.metadata.step
      loss = known.get(step)
      if loss is None:
        loss = self._losses.of_step_on_report(step).mean
      if math.isfinite(loss):
        found.append(Point(step, checkpoint.metadata.tokens, loss))
      progress.stage("trail", number, len(trail), f"step {step}")
    return found

  def _baseline(
    self, name: str, evaluations: int, progress: Progress
  ) -> list[Row]:
    """The best weights of a plain search of bayesopt.baselines, as one row.

    Baselines never try negative weights, but those of Bounds.beta. Of equals
    the point nearer to the last checkpoint wins, and one that keeps to the
    limits of tasks before any other; no row where no point has a finite loss.
    """
    search, direction = self._ready.search, self.last.direction
    bounds = search.domain.bounds
    if bounds.negative:
      # In [-1, 2] a regular or a random point is a wasted one.
      bounds = Bounds()
    total = num_evaluations(name, len(self._steps), evaluations)
    limits = self._losses.limits
    found: list[tuple[bool, float, float, list[float]]] = []
    asked = itertools.count(1)

    def loss(unit_K: Sequence[float]) -> float:
      weights_K = weights_from_unit(unit_K, bounds)
      score = self._losses.of_merge_on_search([weights_K])
      value = as_loss(score.mean, direction)
      if math.isfinite(value):
        breaks = limits is not None and not limits.holds(score)
        found.append((breaks, value, -weights_K[-1], weights_K))
      best = f"no {noun(direction)} yet"
      if found:
        best = f"best {as_loss(min(found)[1], direction):.4f}"
      progress.stage(name, next(asked), total, best)
      # An infinite loss would end a fit or a sampler: as bad as the worst.
      return value if math.isfinite(value) else _NO_LOSS

    BASELINES[name](loss, len(self._steps), evaluations, search.seed)
    done = next(asked) - 1
    return [self._average(name, min(found)[-1], done)] if found else []

  def _accelerated(self) -> list[Row]:
    """The row of regularised nonlinear acceleration, which searches nothing.

    No row of fewer checkpoints than it takes, or where they are not finite.
    """
    method = METHODS.find("rna")
    if count_problems(method, len(self._steps)):
      return []
    gram_PxP = self._losses.gram()
    try:
      weights_K = gram_weights(method, gram_PxP, method.knobs())
    except InputError:
      return []
    return [self._average(method.name, weights_K, 1)]

  def _average(
    self, name: str, weights_K: Sequence[float], evaluations: int
  ) -> Row:
    """The row of all parameters averaged with the same weights."""
    weights = dict(zip(self._steps, weights_K))
    scores = self._losses.of_merge([weights_K])
    return self._row(name, scores, weights, evaluations)

  def _row(
    self,
    name: str,
    scores: Scores,
    weights: Mapping[int, float],
    evaluations: int,
  ) -> Row:
    delta = difference(scores.report, self.last)
    report, search = scores.report.mean, scores.search.mean
    return Row(name, evaluations, weights, search, report, *delta)
