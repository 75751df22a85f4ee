"""The objective of a search: weights in, score of the merge out.

K checkpoints, G groups of parameters with weights of their own.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxmerge.bayesopt.study.study import Observation
from jaxmerge.bayesopt.trials import GRADIENT, GRADIENT_STDERR
from jaxmerge.evaluation.checkpoint_scores import Limits
from jaxmerge.evaluation.domain import Domain
from jaxmerge.evaluation.measurements import Measurer
from jaxmerge.evaluation.merged_loss import MergedLoss, behind, is_one_hot
from jaxmerge.evaluation.score import Score, WeightedSum
from jaxmerge.evaluation.statistics import Estimate
from jaxmerge.merging.resident import Weights

WEIGHTS = "weights"


@dataclasses.dataclass(frozen=True)
class Objective:
  """Called by a study: a point of the simplex to the merge's search score.

  The standard error told is that of the paired difference to the last
  checkpoint: most of the absolute one is shared by all trials.

  Attributes:
    merged: scores merges.
    domain: of the trials' parameters.
    use_gradients: tell the derivative by the weights too.
    incumbent: gives the parameters of the best trial so far; trials that it
      beats beyond noise are stopped early. None: every trial is scored whole.
    limits: of how bad single tasks may get; the excess over each is told as a
      constraint of the trial.
    measurer: decides what else is measured of a trial with a score, and keeps
      it.
  """

  merged: MergedLoss
  domain: Domain
  use_gradients: bool = False
  incumbent: Callable[[], dict[str, float] | None] | None = None
  measurer: Measurer | None = None
  limits: Limits | None = None
  _whole: dict[str, Score] = dataclasses.field(default_factory=dict)

  def __call__(self, number: int, params: dict[str, float]) -> Observation:
    merged = self.merged
    weights_GxK = self.domain.weights(params)
    spent = merged.tokens
    # The last checkpoint alone, which all are compared with, is scored whole.
    in_parts = number > 0 and self._in_parts(weights_GxK)
    best = self._best_score() if in_parts else None
    attrs: dict[str, Any] = {}
    pruned = False
    if best is not None or not self.use_gradients:
      score = merged.score(weights_GxK, best, in_parts=in_parts)
      pruned = len(score.values_N) < len(merged.last.values_N)
      if not pruned:
        # Not what the gradient's program gives, which rounds otherwise: another
        # searcher, or this one after a restart, scores it plainly.
        self._whole.setdefault(_key(params), score)
    if self.use_gradients and not pruned:
      score, gradient_GxK, stderr = merged.differentiated(weights_GxK)
      attrs = self._slopes(gradient_GxK, stderr)
    if self.measurer and not pruned and math.isfinite(score.mean):
      attrs = self.measurer.attrs(merged, number, params, score)
    difference = behind(score, merged.last)
    value, stderr = score.mean, difference.stderr
    if pruned and best is not None:  # an estimate for all items
      beaten = behind(score, best)
      value, stderr = best.mean + beaten.mean, beaten.stderr
    mean_K = self.domain.mean_weights(params)
    excess = self._excess(score)
    return Observation(
      value=value,
      stderr=stderr,
      attrs={
        WEIGHTS: dict(zip(map(str, self.domain.steps), mean_K, strict=True)),
        "delta_vs_last": difference.mean,
        **attrs,
      },
      tokens=merged.tokens - spent,
      pruned=pruned,
      constraints={name: found.mean for name, found in excess.items()},
      constraint_stderrs={name: found.stderr for name, found in excess.items()},
    )

  def _excess(self, score: Score) -> dict[str, Estimate]:
    """By how much each task is worse than it may be."""
    if self.limits is None:
      return {}
    assert isinstance(score, WeightedSum)
    found = self.limits.excess(score)
    return dict(zip(limit_names(len(found)), found, strict=True))

  def _in_parts(self, weights_GxK: Weights) -> bool:
    """Says whether a merge may be stopped early.

    Not a checkpoint alone where limits are of its whole score: by rounding it
    could be worse than itself.
    """
    is_limit = self.limits is not None and is_one_hot(weights_GxK)
    return self.incumbent is not None and not is_limit

  def _best_score(self) -> Score | None:
    params = self.incumbent() if self.incumbent else None
    if params is None:
      return None
    key = _key(params)
    if key not in self._whole:  # another searcher's, or one before a restart
      spent = self.merged.tokens
      weights_GxK = self.domain.weights(params)
      # In the parts that it had as a trial, so that it rounds as there; the
      # last checkpoint is trial 0's.
      is_last = all(row[-1] == 1 for row in weights_GxK)
      in_parts = self._in_parts(weights_GxK) and not is_last
      self._whole[key] = self.merged.score(weights_GxK, in_parts=in_parts)
      # Paid for already, by the trial itself: a search that was killed must
      # come to its limit of tokens where one that never was does.
      self.merged.tokens = spent
    return self._whole[key]

  def _slopes(self, gradient_GxK: np.ndarray, stderr: float) -> dict[str, Any]:
    """A unit step of a parameter is a step of `scale` in its weight."""
    scale = self.domain.bounds.scale(len(self.domain.steps))
    names = itertools.chain(*self.domain.names_GxK)
    slopes = [scale * float(slope) for slope in gradient_GxK.ravel()]
    return {
      GRADIENT: dict(zip(names, slopes, strict=True)),
      GRADIENT_STDERR: scale * stderr,
    }


def limit_names(count: int) -> list[str]:
  """Short names, as storages want them, of the constraints on tasks."""
  return [f"task_{t}" for t in range(count)]


def _key(params: dict[str, float]) -> str:
  return repr(sorted(params.items()))
