"""Rows of the table of baselines, scored on both splits.

Every choice is made on the search split; the report split is scored once for
each finished choice.

K checkpoints.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmerge.bayesopt.controls import CONTROLS
from jaxmerge.bayesopt.reach import Reach, weights_from_unit
from jaxmerge.checkpoints.sources import load_params
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.evaluation.heldout_loss import HeldOutLoss, Score
from jaxmerge.evaluation.paired import difference
from jaxmerge.merging import coefficients
from jaxmerge.merging.groups import one_group
from jaxmerge.merging.trees import Trees
from jaxmerge.reporting.results import Row
from jaxmerge.training.loop import Progress

_NO_LOSS = 1e6


class Comparison:
  """Scores ways to get a model out of K checkpoints against the last one.

  Args:
    steps: training step of each checkpoint, increasing.
    trees: their parameters.
    search: the split that choices are made on.
    report: the split that choices never see.
  """

  def __init__(
    self,
    steps: Sequence[int],
    trees: Trees,
    search: HeldOutLoss,
    report: HeldOutLoss,
  ):
    self._steps = steps
    self._trees = trees
    self._search = search
    self._report = report
    last = trees[-1]
    self._groups = one_group(last)
    self._last_report = report(last)

  def row(self, name: str, weights_K: Sequence[float], evaluations: int) -> Row:
    """The row of one choice of weights."""
    tree = self._average(weights_K)
    return self.of_tree(name, tree, weights_K, evaluations)

  def single(self, checkpoint: Checkpoint, shardings: Any) -> Row:
    """The row of one checkpoint of the run alone."""
    step = checkpoint.metadata.step
    tree = self._tree(checkpoint, shardings)
    return self._row(f"step_{step}", tree, {step: 1.0}, 1)

  def report_loss(self, checkpoint: Checkpoint, shardings: Any) -> float:
    """Report loss of a checkpoint, nats per token."""
    return self._report(self._tree(checkpoint, shardings)).nats_per_token

  def _tree(self, checkpoint: Checkpoint, shardings: Any) -> Any:
    if checkpoint.metadata.step in self._steps:
      return self._trees[self._steps.index(checkpoint.metadata.step)]
    return load_params(checkpoint, shardings)

  def _average(self, weights_K: Sequence[float]) -> Any:
    return self._trees.average([weights_K], self._groups)

  def _row(
    self, name: str, tree: Any, weights: Mapping[int, float], evaluations: int
  ) -> Row:
    report: Score = self._report(tree)
    delta = difference(report, self._last_report)
    return Row(
      name=name,
      evaluations=evaluations,
      weights=weights,
      search_loss=self._search(tree).nats_per_token,
      report_loss=report.nats_per_token,
      report_delta_vs_last=delta.mean,
      report_delta_stderr=delta.stderr,
    )

  def last(self) -> Row:
    """The later checkpoint alone: what a merge has to beat."""
    one_hot = [0.0] * (len(self._steps) - 1) + [1.0]
    return self.row("last", one_hot, 1)

  def uniform(self) -> Row:
    """Plain averaging."""
    return self.row("uniform", coefficients.uniform(len(self._steps)), 1)

  def control(
    self,
    name: str,
    reach: Reach,
    evaluations: int,
    seed: int,
    progress: Progress,
  ) -> list[Row]:
    """The best weights of a plain search of bayesopt.controls, as one row.

    Of equals the point nearer to the last checkpoint wins; no row where no
    point has a finite loss.
    """
    found: list[tuple[float, float, list[float]]] = []

    def loss(unit_K: Sequence[float]) -> float:
      weights_K = weights_from_unit(unit_K, reach)
      value = self._search(self._average(weights_K)).nats_per_token
      if math.isfinite(value):
        found.append((value, -weights_K[-1], weights_K))
      lowest = f"best {min(found)[0]:.4f}" if found else "no loss yet"
      count = next(asked)
      progress(name, count, max(evaluations, count), lowest)
      # An infinite loss would end a fit or a sampler: as bad as the worst.
      return value if math.isfinite(value) else _NO_LOSS

    asked = itertools.count(1)
    CONTROLS[name](loss, len(self._steps), evaluations, seed)
    done = next(asked) - 1
    return [self.row(name, min(found)[2], done)] if found else []

  def of_tree(
    self, name: str, tree: Any, weights_K: Sequence[float], evaluations: int
  ) -> Row:
    """The row of a merge that is already made, with its mean weights."""
    weights = dict(zip(self._steps, weights_K))
    return self._row(name, tree, weights, evaluations)
