"""Merges of resident trees and their scores, computed by all processes.

K checkpoints, G groups of parameters with weights of their own, N items.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.errors import InputError
from jaxmerge.evaluation import statistics
from jaxmerge.evaluation.derivative_price import (
  DerivativePasses,
  curvature_sequences,
  derivative_passes,
)
from jaxmerge.evaluation.evaluator import (
  Derivatives,
  Differentiable,
  Evaluator,
  Resumable,
  WeightDifferentiable,
)
from jaxmerge.evaluation.score import Score, WeightedSum, as_loss, noun
from jaxmerge.merging.groups import Groups
from jaxmerge.merging.resident import Trees, TreesInStorage, Weights
from jaxmerge.parallel.distributed import Team
from jaxmerge.parallel.exchange import agreed

# Parts of the split after which a trial may be stopped, and by how many
# standard errors it must be beaten.
_RUNGS = (0.25, 0.5)
_BEATEN = 3.0


class MergedLoss:
  """Merges on the devices and scores, without touching the disk.

  Args:
    trees: K trees of parameters, oldest first.
    evaluator: scores them.
    groups: of parameters with weights of their own.
    team: of the job's processes, each with such an object; its first calls
      `score`, `differentiated` and `measured`, and all compute. None: one
      process.

  Attributes:
    last: the score of the last tree alone.
    tokens: spent so far; see Score.

  Raises:
    InputError: the last tree has no finite score to compare with.
  """

  def __init__(
    self,
    trees: Trees,
    evaluator: Evaluator,
    groups: Groups,
    team: Team | None = None,
  ):
    self.trees = trees
    self._team = team or Team()
    self._team.add("score", self._score)
    self._team.add("differentiated", self._differentiated)
    self._team.add("measured", self._measured)
    self._best: Score | None = None  # that a score may be beaten by
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

  def not_finite(self) -> list[int]:
    """The trees with Inf or NaN: every derivative beside them is NaN."""
    trees = (self.trees[k] for k in range(len(self.trees)))
    return [k for k, tree in enumerate(trees) if not _all_finite(tree)]

  def merge(self, weights_GxK: Weights) -> Any:
    """The merged tree."""
    return self.trees.average(weights_GxK, self._groups)

  def _scratch(self, weights_GxK: Weights) -> Any:
    """The merged tree in the memory of the one before, for as long as that."""
    spare, self._spare = self._spare, None
    params = self.trees.average(weights_GxK, self._groups, spare)
    if not is_one_hot(weights_GxK):  # which may be an input itself
      self._spare = params
    return params

  def score(
    self,
    weights_GxK: Weights,
    best: Score | None = None,
    *,
    in_parts: bool = False,
  ) -> Score:
    """The score of a merge, of fewer items where it is beaten early.

    Args:
      weights_GxK: of the merge.
      best: on the whole split; after a quarter and a half of its items, which
        are random samples of it, a merge that is worse beyond three paired
        standard errors is scored no further.
      in_parts: round as the score of a merge that might have been beaten.
    """
    self._best = best
    found: Score = self._team.do(
      "score", weights_GxK, in_parts, best is not None
    )
    return found

  def _score(
    self, weights_GxK: Weights, in_parts: bool, may_stop: bool
  ) -> Score:
    params = self._scratch(weights_GxK)
    all_of_them = len(self.last.values_N)
    in_parts = in_parts and isinstance(self.evaluator, Resumable)
    found = None
    for rung in (*(_RUNGS if in_parts or may_stop else ()), 1.0):
      count = math.ceil(rung * all_of_them)
      if found is not None and isinstance(self.evaluator, Resumable):
        found = self.evaluator.extend(params, found, count)
      else:
        found = self.evaluator.score(params, count)
      # Whole batches are what it costs, whatever the sample.
      self.tokens += found.tokens
      score = found.first(count)
      if (
        may_stop
        and count < all_of_them
        and agreed(functools.partial(self._is_beaten, score))
      ):
        break
    return score

  def _is_beaten(self, score: Score) -> bool:
    best = self._best
    assert best is not None, "asked of the first process alone"
    if not _has_errors(score):
      return False
    found = behind(score, best)
    return as_loss(found.mean, best.direction) > _BEATEN * found.stderr

  def measured(
    self, weights_GxK: Weights, *, curvature: bool, score: Score | None = None
  ) -> Derivatives:
    """The score and its derivatives by the weights, item by item.

    Args:
      weights_GxK: of the merge; all trees are finite.
      curvature: measure it too, on the first sequences of some documents.
      score: of the merge, where it is known already.
    """
    score = score or self.score(weights_GxK)
    found: Derivatives = self._team.do("measured", weights_GxK, curvature)
    # What rounds otherwise is not compared with plain scores.
    return found._replace(score=score)

  @property
  def _curvature_sequences(self) -> int:
    directions = len(self._groups.names_G) * (len(self.trees) - 1)
    return curvature_sequences(directions, len(self.last.values_N))

  @property
  def derivative_passes(self) -> DerivativePasses:
    """The price of `measured`."""
    directions = len(self._groups.names_G) * (len(self.trees) - 1)
    on_devices = not isinstance(self.trees, TreesInStorage)
    sequences = len(self.last.values_N)
    return derivative_passes(directions, sequences, on_devices=on_devices)

  def _measured(self, weights_GxK: Weights, curvature: bool) -> Derivatives:
    assert isinstance(self.evaluator, WeightDifferentiable)
    self._spare = None  # derivatives make trees of their own
    found = self.evaluator.weight_derivatives(
      weights_GxK,
      self.trees,
      self._groups,
      self._curvature_sequences if curvature else 0,
    )
    self.tokens += found.score.tokens
    return found

  def differentiated(
    self, weights_GxK: Weights
  ) -> tuple[Score, np.ndarray, float]:
    """The score, d mean / d weights (GxK), and its standard error.

    Weights of a group sum to one, so only differences within a row matter:
    the last checkpoint's entry is 0.
    The error is that of a slope along a change of weights of length one.
    """
    found: tuple[Score, np.ndarray, float] = self._team.do(
      "differentiated", weights_GxK
    )
    return found

  def _differentiated(
    self, weights_GxK: Weights
  ) -> tuple[Score, np.ndarray, float]:
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
      return behind(score, self.last).stderr / distance
    along = 1.0 / weights_GxK.shape[1] - last_GxK
    _, slope = self._slope(self.trees[-1], along)
    return slope.stderr / float(np.linalg.norm(along))


def is_one_hot(weights_GxK: Weights) -> bool:
  """Says whether all groups take the same single tree."""
  used = {k for row in weights_GxK for k, w in enumerate(row) if w != 0}
  return len(used) == 1


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
  return jax.tree.reduce(
    jnp.logical_and, jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)
  )


def _has_errors(score: Score) -> bool:
  """Says whether every task, of several, has two clusters or more."""
  tasks = [score]
  if isinstance(score, WeightedSum):
    tasks = [score.of_part(t) for t in range(len(score.parts))]
  return all(len(np.unique(task.clusters_N)) > 1 for task in tasks)


def behind(score: Score, other: Score) -> statistics.Estimate:
  """Difference to a score of all items, on those that `score` is of."""
  return statistics.difference(score, other.first(len(score.values_N)))
