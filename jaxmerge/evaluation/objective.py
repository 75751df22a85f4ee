"""The objective of a search: weights in, score of the merge out.

K checkpoints, G groups of parameters with weights of their own, N items.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.bayesopt.study.study import Observation
from jaxmerge.bayesopt.trials import GRADIENT, GRADIENT_STDERR
from jaxmerge.errors import InputError, check
from jaxmerge.evaluation import statistics
from jaxmerge.evaluation.evaluator import Differentiable, Evaluator, Resumable
from jaxmerge.evaluation.score import Score, as_loss, noun
from jaxmerge.merging.groups import Groups
from jaxmerge.merging.resident import Trees, Weights
from jaxmerge.simplex.bounds import Bounds, weights_from_unit

WEIGHTS = "weights"
# Parts of the split after which a trial may be stopped, and by how many
# standard errors it must be beaten.
_RUNGS = (0.25, 0.5)
_BEATEN = 3.0


class Domain(NamedTuple):
  """Maps the parameters of a trial to weights.

  Attributes:
    steps: training step of each checkpoint, increasing.
    groups: of the parameters that have weights of their own.
    bounds: of the last checkpoint's weight.
  """

  steps: Sequence[int]
  groups: Groups
  bounds: Bounds

  @property
  def names_GxK(self) -> list[list[str]]:
    """Names of a search's parameters: w_0, or band_0/w_0 in a group."""
    prefixes = [f"{group}/" if group else "" for group in self.groups.names_G]
    return [
      [f"{prefix}w_{k}" for k in range(len(self.steps))] for prefix in prefixes
    ]

  def weights(self, params: dict[str, float]) -> list[list[float]]:
    """The checkpoint weights of each group (GxK)."""
    return [
      weights_from_unit([params[name] for name in names], self.bounds)
      for names in self.names_GxK
    ]

  def mean_weights(self, params: dict[str, float]) -> list[float]:
    """The weights of all parameters together: those of the groups by size."""
    return self.groups.mean_weights(self.weights(params))


class MergedLoss:
  """Merges on the devices and scores, without touching the disk.

  Args:
    trees: K trees of parameters, oldest first.
    evaluator: scores them.
    groups: of parameters with weights of their own.

  Attributes:
    last: the score of the last tree alone.
    tokens: spent so far; see Score.

  Raises:
    InputError: the last tree has no finite score to compare with.
  """

  def __init__(self, trees: Trees, evaluator: Evaluator, groups: Groups):
    self.trees = trees
    # The last merge that score() made and nobody else holds.
    self._spare: Any = None
    self.evaluator = evaluator
    self._groups = groups
    self.tokens = 0
    self.last = evaluator.score(trees[-1])
    if not math.isfinite(self.last.mean):
      raise InputError(
        f"the last checkpoint to merge has a {noun(self.last.direction)} that "
        "is not a finite number: the run has diverged; choose earlier steps"
      )

  def check_differentiable(self, steps: Sequence[int]) -> None:
    """Refuses trees with Inf or NaN, whose every derivative would be NaN."""
    check(
      f"step {step} has parameters that are not finite: leave it out, or "
      "search without config.use_gradients"
      for k, step in enumerate(steps)
      if not _all_finite(self.trees[k])
    )

  def merge(self, weights_GxK: Weights) -> Any:
    """The merged tree."""
    return self.trees.average(weights_GxK, self._groups)

  def _scratch(self, weights_GxK: Weights) -> Any:
    """The merged tree in the memory of the one before, for as long as that."""
    spare, self._spare = self._spare, None
    params = self.trees.average(weights_GxK, self._groups, spare)
    if not _is_one_hot(weights_GxK):  # which may be an input itself
      self._spare = params
    return params

  def score(self, weights_GxK: Weights, best: Score | None = None) -> Score:
    """The score of a merge, of fewer items where it is beaten early.

    Args:
      weights_GxK: of the merge.
      best: on the whole split; after a quarter and a half of its items, which
        are random samples of it, a merge that is worse beyond three paired
        standard errors is scored no further.
    """
    params = self._scratch(weights_GxK)
    all_of_them = len(self.last.values_N)
    found = None
    for rung in (*(_RUNGS if best else ()), 1.0):
      count = math.ceil(rung * all_of_them)
      if found is not None and isinstance(self.evaluator, Resumable):
        found = self.evaluator.extend(params, found, count)
      else:
        found = self.evaluator.score(params, count)
      # Whole batches are what it costs, whatever the sample.
      self.tokens += found.tokens
      score = found.first(count)
      if best is not None and count < all_of_them and _is_beaten(score, best):
        break
    return score

  def differentiated(
    self, weights_GxK: Weights
  ) -> tuple[Score, np.ndarray, float]:
    """The score, d mean / d weights (GxK), and its standard error.

    Weights of a group sum to one, so only differences within a row matter:
    the last checkpoint's entry is 0.
    The error is that of a slope along a change of weights of length one.
    """
    weights = np.asarray(weights_GxK, np.float32)
    params = self._scratch(weights_GxK)
    if weights.shape == (1, 2):
      score, slope = self._slope(params, np.array([[-1.0, 1.0]], np.float32))
      stderr = slope.stderr / math.sqrt(2)
      return score, np.array([[0.0, slope.mean]]), stderr
    assert isinstance(self.evaluator, Differentiable)
    score, gradient = self.evaluator.gradient(params)
    self.tokens += score.tokens
    sum_GxK = self.trees.slopes(gradient, self._groups)
    mean_GxK = sum_GxK / float(score.weights_N.sum())
    return score, mean_GxK, self._slope_stderr(weights, score)

  def _slope(
    self, params: Any, along_GxK: np.ndarray
  ) -> tuple[Score, statistics.Estimate]:
    """The score, and the derivative of its mean along a change of weights."""
    tangent = self.trees.weighted_sum(along_GxK.tolist(), self._groups)
    assert isinstance(self.evaluator, Differentiable)
    score, slopes_N = self.evaluator.slope(params, tangent)
    self.tokens += score.tokens
    return score, statistics.ratio(slopes_N, score)

  def _slope_stderr(self, weights_GxK: np.ndarray, score: Score) -> float:
    """From the difference to the last checkpoint, over the way to it.

    At the last checkpoint itself: of the slope towards the uniform mean.
    """
    last_GxK = np.zeros_like(weights_GxK)
    last_GxK[:, -1] = 1.0
    distance = float(np.linalg.norm(weights_GxK - last_GxK))
    if distance > 0:
      return _behind(score, self.last).stderr / distance
    along = 1.0 / weights_GxK.shape[1] - last_GxK
    _, slope = self._slope(self.trees[-1], along)
    return slope.stderr / float(np.linalg.norm(along))


def _is_one_hot(weights_GxK: Weights) -> bool:
  """Says whether all groups take the same single tree."""
  used = {k for row in weights_GxK for k, w in enumerate(row) if w != 0}
  return len(used) == 1


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
  return jax.tree.reduce(
    jnp.logical_and, jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)
  )


def _behind(score: Score, other: Score) -> statistics.Estimate:
  """Difference to a score of all items, on those that `score` is of."""
  return statistics.difference(score, other.first(len(score.values_N)))


def _is_beaten(score: Score, best: Score) -> bool:
  behind = _behind(score, best)
  return as_loss(behind.mean, best.direction) > _BEATEN * behind.stderr


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
  """

  merged: MergedLoss
  domain: Domain
  use_gradients: bool = False
  incumbent: Callable[[], dict[str, float] | None] | None = None
  _whole: dict[str, Score] = dataclasses.field(default_factory=dict)

  def __call__(self, number: int, params: dict[str, float]) -> Observation:
    merged = self.merged
    weights_GxK = self.domain.weights(params)
    spent = merged.tokens
    # The last checkpoint alone, which all are compared with, is scored whole.
    best = self._best_score() if number else None
    attrs: dict[str, Any] = {}
    pruned = False
    if best is not None or not self.use_gradients:
      score = merged.score(weights_GxK, best)
      pruned = len(score.values_N) < len(merged.last.values_N)
      if not pruned:
        # Not what the gradient's program gives, which rounds otherwise: another
        # searcher, or this one after a restart, scores it plainly.
        self._whole[_key(params)] = score
    if self.use_gradients and not pruned:
      score, gradient_GxK, stderr = merged.differentiated(weights_GxK)
      attrs = self._slopes(gradient_GxK, stderr)
    difference = _behind(score, merged.last)
    value, stderr = score.mean, difference.stderr
    if pruned and best is not None:  # an estimate for all items
      behind = _behind(score, best)
      value, stderr = best.mean + behind.mean, behind.stderr
    mean_K = self.domain.mean_weights(params)
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
    )

  def _best_score(self) -> Score | None:
    params = self.incumbent() if self.incumbent else None
    if params is None:
      return None
    key = _key(params)
    if key not in self._whole:  # another searcher's, or one before a restart
      spent = self.merged.tokens
      self._whole[key] = self.merged.score(self.domain.weights(params))
      # Paid for already, by the trial itself: a search that was killed must
      # come to its limit of tokens where one that never was does.
      self.merged.tokens = spent
    return self._whole[key]

  def _slopes(self, gradient_GxK: np.ndarray, stderr: float) -> dict[str, Any]:
    """A unit step of a parameter is a step of `scale` in its weight."""
    scale = 1 - self.domain.bounds.alpha + self.domain.bounds.beta
    names = itertools.chain(*self.domain.names_GxK)
    slopes = [scale * float(slope) for slope in gradient_GxK.ravel()]
    return {
      GRADIENT: dict(zip(names, slopes, strict=True)),
      GRADIENT_STDERR: scale * stderr,
    }


def _key(params: dict[str, float]) -> str:
  return repr(sorted(params.items()))
