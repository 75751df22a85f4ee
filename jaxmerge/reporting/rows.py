"""Rows of the table of baselines, scored on both splits.

Every choice is made on the search split; the report split is scored once for
each finished choice. K checkpoints.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmerge.bayesopt.baselines import BASELINES
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.model_inputs import load_params
from jaxmerge.evaluation.evaluator import Evaluator
from jaxmerge.evaluation.objective import Domain
from jaxmerge.evaluation.score import as_loss, noun
from jaxmerge.evaluation.statistics import difference
from jaxmerge.merging import weight_rules
from jaxmerge.merging.groups import one_group
from jaxmerge.merging.resident import Trees
from jaxmerge.progress import Progress
from jaxmerge.reporting.results import Point, Row
from jaxmerge.simplex.bounds import weights_from_unit

_NO_LOSS = 1e6


class Comparison:
  """Scores ways to get a model out of K checkpoints against the last one.

  Args:
    domain: of the search's weights.
    trees: the parameters of the checkpoints of its steps.
    trail: the run's checkpoints by step (the inputs, where they were given).
    where: shardings of a parameter tree.
    search: the split that choices are made on.
    report: the split that choices never see.

  Attributes:
    unit, direction: of all scores.
  """

  def __init__(
    self,
    domain: Domain,
    trees: Trees,
    trail: Sequence[Checkpoint],
    where: Any,
    search: Evaluator,
    report: Evaluator,
  ):
    self.domain = domain
    self.trail = trail
    self._trees = trees
    self._where = where
    self._search = search
    self._report = report
    last = trees[-1]
    self._groups = one_group(last)
    self._last_report = report.score(last)
    self.unit = self._last_report.unit
    self.direction = self._last_report.direction

  def rows(
    self,
    method: str,
    params: dict[str, float],
    evaluations: int,
    baselines: Sequence[str],
    seed: int,
    progress: Progress,
  ) -> list[Row]:
    """The last checkpoint, those before it, the baselines and the search.

    What has diverged, or is merged with such a checkpoint, gets no row.

    Args:
      method: name of the search's row.
      params: that the search recommends.
      evaluations: that it took, and that each baseline gets.
      baselines: names of bayesopt.baselines.
      seed: of their draws.
      progress: told how far the work is.
    """
    domain = self.domain
    count = len(domain.steps)
    last = self._average("last", [0.0] * (count - 1) + [1.0], 1)
    earlier = [c for c in self.trail if c.metadata.step < domain.steps[-1]]
    found = []
    for number, checkpoint in enumerate(earlier, start=1):
      step = checkpoint.metadata.step
      name, weights = f"step_{step}", {step: 1.0}
      found.append(self._row(name, self._tree(checkpoint), weights, 1))
      progress.stage("baselines", number, len(earlier), name)
    found.append(self._average("uniform", weight_rules.uniform(count), 1))
    for name in baselines:
      found += self._baseline(name, evaluations, seed, progress)
    merged = self._row(
      method,
      self._trees.average(domain.weights(params), domain.groups),
      dict(zip(domain.steps, domain.mean_weights(params))),
      evaluations,
    )
    losses = [(row.search_loss, row.report_loss) for row in found]
    finite = [all(map(math.isfinite, pair)) for pair in losses]
    return [last, *itertools.compress(found, finite), merged]

  def points(self, rows: Sequence[Row], progress: Progress) -> list[Point]:
    """Finite report losses of the trail's checkpoints, by step.

    Args:
      rows: what they have scored is not scored again.
      progress: as for `rows`.
    """
    known = {row.steps[0]: row.report_loss for row in rows if row.is_single}
    found = []
    for number, checkpoint in enumerate(self.trail, start=1):
      step = checkpoint.metadata.step
      loss = known.get(step)
      if loss is None:
        loss = self._report.score(self._tree(checkpoint)).mean
      if math.isfinite(loss):
        found.append(Point(step, checkpoint.metadata.tokens, loss))
      progress.stage("trail", number, len(self.trail), f"step {step}")
    return found

  def _baseline(
    self, name: str, evaluations: int, seed: int, progress: Progress
  ) -> list[Row]:
    """The best weights of a plain search of bayesopt.baselines, as one row.

    Of equals the point nearer to the last checkpoint wins; no row where no
    point has a finite loss.
    """
    found: list[tuple[float, float, list[float]]] = []
    asked = itertools.count(1)

    def loss(unit_K: Sequence[float]) -> float:
      weights_K = weights_from_unit(unit_K, self.domain.bounds)
      tree = self._trees.average([weights_K], self._groups)
      value = as_loss(self._search.score(tree).mean, self.direction)
      if math.isfinite(value):
        found.append((value, -weights_K[-1], weights_K))
      best = f"no {noun(self.direction)} yet"
      if found:
        best = f"best {as_loss(min(found)[0], self.direction):.4f}"
      count = next(asked)
      progress.stage(name, count, max(evaluations, count), best)
      # An infinite loss would end a fit or a sampler: as bad as the worst.
      return value if math.isfinite(value) else _NO_LOSS

    BASELINES[name](loss, len(self.domain.steps), evaluations, seed)
    done = next(asked) - 1
    return [self._average(name, min(found)[2], done)] if found else []

  def _tree(self, checkpoint: Checkpoint) -> Any:
    steps = self.domain.steps
    if checkpoint.metadata.step in steps:
      return self._trees[steps.index(checkpoint.metadata.step)]
    return load_params(checkpoint, self._where)

  def _average(
    self, name: str, weights_K: Sequence[float], evaluations: int
  ) -> Row:
    """The row of all parameters averaged with the same weights."""
    tree = self._trees.average([weights_K], self._groups)
    weights = dict(zip(self.domain.steps, weights_K))
    return self._row(name, tree, weights, evaluations)

  def _row(
    self, name: str, tree: Any, weights: Mapping[int, float], evaluations: int
  ) -> Row:
    report = self._report.score(tree)
    delta = difference(report, self._last_report)
    return Row(
      name=name,
      evaluations=evaluations,
      weights=weights,
      search_loss=self._search.score(tree).mean,
      report_loss=report.mean,
      report_delta_vs_last=delta.mean,
      report_delta_stderr=delta.stderr,
    )
