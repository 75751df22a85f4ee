"""Weights of many groups from one quadratic programme.

G groups of parameters, K checkpoints (oldest first), C documents, B folds of
documents, P rows of a partition (groups whose weights change together).
Gradients and curvature are as quadratic_model.Quadratic says; losses are in
nats/token.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxmerge.errors import check
from jaxmerge.simplex import capped_rows
from jaxmerge.simplex.quadratic_model import (
  Quadratic,
  Region,
  free_ways,
  penalised,
  problems,
  room,
  rows,
)

# Of the mean eigenvalue of the curvature.
RIDGES = (0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FOLDS = 8


class Step(NamedTuple):
  """New weights, the change they bring by the model, and their residual."""

  weights_GxK: np.ndarray
  change: float
  residual: float


class Choice(NamedTuple):
  """A step, by what it was solved and its gain on documents left out."""

  weights_GxK: np.ndarray
  ridge: float
  partition: str
  gain: float
  change: float
  residual: float


class Precision(NamedTuple):
  """Standard errors of solved weights, and the loss that they cost.

  Attributes:
    stderr_GxK: standard error of each weight; 0 of one held at a bound.
    excess: expected loss above that of the best weights, nats/token.
  """

  stderr_GxK: np.ndarray
  excess: float

  def gain(self, times: float) -> float:
    """Gain of so many times the documents: the excess falls as 1 / number."""
    return self.excess * (1 - 1 / times)


def minimise(
  quadratic: Quadratic,
  region: Region,
  ridge: float,
  partition: Sequence[int],
  about_GxK: np.ndarray | None = None,
) -> Step:
  """Solves for the weights of the lowest predicted loss.

  min over d of g d + d' H d / 2 + (lambda / 2) sum_gk (a_gk - mean_g a_gk)^2,
  a = w + d - `about_GxK` (None: d), rows of d sum to zero, w + d lies in the
  region, and groups that have the same index in `partition` (G indices, 0 to
  P - 1) change together. lambda is `ridge` times the mean eigenvalue of H over
  the allowed directions: a ridge means the same for checkpoints near each
  other and for those far apart.

  Raises:
    InputError: values that are not finite or do not fit together, or weights
      outside the region.
  """
  check(problems(quadratic, region, {"": partition}, [ridge]))
  pulled = quadratic
  if about_GxK is not None:
    pulled = _pulled(quadratic, ridge, about_GxK)
  d_GxK = _solver(pulled, region, partition, ridge)(pulled.gradient_GxK)
  # A weight at a bound may be a rounding past it.
  weights_GxK = np.clip(
    quadratic.weights_GxK + d_GxK, region.lowest_K, region.highest
  )
  return Step(
    weights_GxK,
    quadratic.change(weights_GxK),
    _residual(pulled, weights_GxK, region, partition, ridge),
  )


def choose(
  quadratic: Quadratic,
  region: Region,
  partitions: Mapping[str, Sequence[int]],
  ridges: Sequence[float] = RIDGES,
) -> Choice:
  """Solves with the partition and ridge that gain most on documents left out.

  gain = -sum_b [g_b d_-b + (T_b / 2) d_-b' H d_-b] / T, where d_-b is solved
  without the documents of fold b. Of equal gains that of the earlier
  partition, then of the larger ridge, is taken; where none is above zero the
  weights stay, with gain and change 0.

  Raises:
    InputError: as minimise does, or fewer than two documents.
  """
  check(problems(quadratic, region, partitions, ridges))
  check(_too_few(quadratic))
  folds = _folds(quadratic)
  best, chosen = 0.0, None
  for name, partition in partitions.items():
    for ridge in sorted(ridges, reverse=True):
      solve = _solver(quadratic, region, partition, ridge)
      gain = _gain(quadratic, folds, solve)
      if gain > best:
        best, chosen = gain, (name, ridge)
  if chosen is None:
    name, partition = next(iter(partitions.items()))
    weights_GxK = np.array(quadratic.weights_GxK, np.float64)
    off = _residual(quadratic, weights_GxK, region, partition, 0.0)
    return Choice(weights_GxK, max(ridges), name, 0.0, 0.0, off)
  name, ridge = chosen
  step = minimise(quadratic, region, ridge, partitions[name])
  return Choice(step.weights_GxK, ridge, name, best, step.change, step.residual)


def residual(
  quadratic: Quadratic,
  weights_GxK: np.ndarray,
  region: Region,
  partition: Sequence[int] | None = None,
  ridge: float = 0.0,
) -> float:
  """Certifies weights: 0 at the optimum of the model, above it elsewhere.

  The largest breach of the conditions of Karush, Kuhn and Tucker with the best
  multiplier of each row, in nats/token per unit of weight. Without a partition
  the groups are free.

  Raises:
    InputError: as minimise does.
  """
  if partition is None:
    partition = range(len(quadratic.weights_GxK))
  there = quadratic._replace(weights_GxK=np.asarray(weights_GxK, np.float64))
  found = problems(quadratic, region, {"": partition}, [ridge])
  check(found or problems(there, region, {"": partition}, [ridge]))
  return _residual(quadratic, there.weights_GxK, region, partition, ridge)


def precision(
  quadratic: Quadratic,
  region: Region,
  partition: Sequence[int],
  ridge: float = 0.0,
) -> Precision:
  """Standard errors of weights that were solved for, and their excess loss.

  The sandwich M^-1 C M^-1 over documents at the weights of the model, M = H
  and its ridge, C the covariance of the mean gradient, clustered by document:
  C = n / (n - 1) sum_c u_c u_c' / T^2, u_c = g_c - T_c g. Weights at a bound
  that the loss pushes them against are held. The excess is tr(H cov) / 2:
  without a ridge tr(H^-1 C) / 2.

  Raises:
    InputError: as minimise does, or fewer than two documents.
  """
  check(problems(quadratic, region, {"": partition}, [ridge]))
  check(_too_few(quadratic))
  g, k = quadratic.weights_GxK.shape
  tokens = quadratic.counts_C.sum()
  clusters = len(quadratic.counts_C)
  centred_CxGxK = quadratic.gradients_CxGxK - (
    quadratic.counts_C[:, None, None] * quadratic.gradient_GxK
  )
  scale = np.sqrt(clusters / (clusters - 1)) / tokens
  scores_CxR = scale * centred_CxGxK.reshape(clusters, g * k)
  ways_RxF = free_ways(quadratic, region, partition)
  matrix_FxF = ways_RxF.T @ penalised(quadratic, ridge) @ ways_RxF
  moved_FxC = capped_rows.solve_damped(matrix_FxF, (scores_CxR @ ways_RxF).T)
  moved_RxC = ways_RxF @ moved_FxC
  stderr_R = np.sqrt(np.sum(moved_RxC**2, axis=1))
  bend = np.sum(moved_RxC * (quadratic.curvature @ moved_RxC))
  return Precision(stderr_R.reshape(g, k), float(bend) / 2)


def _pulled(
  quadratic: Quadratic, ridge: float, about_GxK: np.ndarray
) -> Quadratic:
  """The quadratic with the slopes of a ridge about other weights."""
  off_R = (quadratic.weights_GxK - about_GxK).ravel()
  pull_R = (penalised(quadratic, ridge) - quadratic.curvature) @ off_R
  pull_CxR = np.outer(quadratic.counts_C, pull_R)
  gradients_CxGxK = quadratic.gradients_CxGxK
  return quadratic._replace(
    gradients_CxGxK=gradients_CxGxK + pull_CxR.reshape(gradients_CxGxK.shape)
  )


def _solver(
  quadratic: Quadratic,
  region: Region,
  partition: Sequence[int],
  ridge: float,
) -> Callable[[np.ndarray], np.ndarray]:
  """A function from the gradient (GxK) to the step (GxK)."""
  spread_GxP = np.eye(max(partition) + 1)[np.asarray(partition)]
  spread = np.kron(spread_GxP, np.eye(quadratic.weights_GxK.shape[1]))
  bowl = capped_rows.bowl(
    spread.T @ penalised(quadratic, ridge) @ spread,
    *room(quadratic.weights_GxK, region, partition),
  )

  def solve(gradient_GxK: np.ndarray) -> np.ndarray:
    slopes_PxK = spread_GxP.T @ gradient_GxK
    return spread_GxP @ capped_rows.minimise_rows(bowl, slopes_PxK)

  return solve


def _residual(
  quadratic: Quadratic,
  weights_GxK: np.ndarray,
  region: Region,
  partition: Sequence[int],
  ridge: float,
) -> float:
  d_R = (weights_GxK - quadratic.weights_GxK).ravel()
  slopes_R = penalised(quadratic, ridge) @ d_R
  slopes_GxK = quadratic.gradient_GxK + slopes_R.reshape(weights_GxK.shape)
  low_PxK, high_PxK = room(weights_GxK, region, partition)
  return capped_rows.violation(
    rows(slopes_GxK, partition), np.zeros_like(low_PxK), low_PxK, high_PxK
  )


def _folds(quadratic: Quadratic) -> tuple[np.ndarray, np.ndarray]:
  """Tokens (B) and summed gradients (BxGxK) of folds of whole documents.

  The longest document first, each to the fold that has the fewest tokens.
  """
  count = min(_FOLDS, len(quadratic.counts_C))
  counts_B = np.zeros(count)
  gradients_BxGxK = np.zeros((count, *quadratic.weights_GxK.shape))
  for c in np.argsort(-quadratic.counts_C, kind="stable"):
    fold = int(np.argmin(counts_B))
    counts_B[fold] += quadratic.counts_C[c]
    gradients_BxGxK[fold] += quadratic.gradients_CxGxK[c]
  return counts_B, gradients_BxGxK


def _gain(
  quadratic: Quadratic,
  folds: tuple[np.ndarray, np.ndarray],
  solve: Callable[[np.ndarray], np.ndarray],
) -> float:
  """Loss saved on the documents that a step has not seen, nats/token."""
  counts_B, gradients_BxGxK = folds
  tokens, total_GxK = counts_B.sum(), gradients_BxGxK.sum(0)
  gain = 0.0
  for count, gradient_GxK in zip(counts_B, gradients_BxGxK, strict=True):
    d_R = solve((total_GxK - gradient_GxK) / (tokens - count)).ravel()
    bend = d_R @ quadratic.curvature @ d_R / 2
    gain -= (gradient_GxK.ravel() @ d_R + count * bend) / tokens
  return float(gain)


def _too_few(quadratic: Quadratic) -> list[str]:
  if len(quadratic.counts_C) > 1:
    return []
  return ["gradients of at least two documents are needed, got those of one"]
