"""A quadratic model of the merged loss in its weights, and its checks.

G groups of parameters, K checkpoints (oldest first), C documents, P rows of
a partition (groups whose weights change together). Losses are in nats/token; a
derivative is to the last checkpoint, whose own column is 0. Curvature is
indexed g * K + k.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.simplex import capped_rows

_TOLERANCE = 1e-6


class Region(NamedTuple):
  """Weights that are allowed: lowest_k <= w_k <= highest, of sum one."""

  lowest_K: tuple[float, ...]
  highest: float


class Quadratic(NamedTuple):
  """The loss around weights at which its derivatives were measured.

  Attributes:
    weights_GxK: where; every row sums to one.
    gradients_CxGxK: d (summed loss of a document) / d weights.
    counts_C: tokens of each document.
    curvature: (GK)x(GK), the Gauss-Newton matrix of the mean loss.
  """

  weights_GxK: np.ndarray
  gradients_CxGxK: np.ndarray
  counts_C: np.ndarray
  curvature: np.ndarray

  @property
  def gradient_GxK(self) -> np.ndarray:
    """The gradient of the mean loss, nats/token per unit of weight."""
    return self.gradients_CxGxK.sum(0) / self.counts_C.sum()

  def change(self, weights_GxK: np.ndarray) -> float:
    """Predicts how much the loss changes at other weights, nats/token."""
    d_R = (np.asarray(weights_GxK) - self.weights_GxK).ravel()
    slope = self.gradient_GxK.ravel() @ d_R
    return float(slope + d_R @ self.curvature @ d_R / 2)


def penalised(quadratic: Quadratic, ridge: float) -> np.ndarray:
  """H + lambda C, C the centring of groups."""
  g, k = quadratic.weights_GxK.shape
  basis_KxJ = capped_rows.sum_zero_basis(k)
  allowed = capped_rows.within_rows(quadratic.curvature, basis_KxJ)
  mean = np.trace(allowed) / max(len(allowed), 1)
  centring = np.kron(np.eye(g) - 1 / g, np.eye(k))
  return quadratic.curvature + ridge * mean * centring


def room(
  weights_GxK: np.ndarray, region: Region, partition: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """The lowest and highest changes of rows, PxK; no change is allowed."""
  shape = (max(partition) + 1, weights_GxK.shape[1])
  low_PxK, high_PxK = np.full(shape, -np.inf), np.full(shape, np.inf)
  index_G = np.asarray(partition)
  np.maximum.at(low_PxK, index_G, np.array(region.lowest_K) - weights_GxK)
  np.minimum.at(high_PxK, index_G, region.highest - weights_GxK)
  return np.minimum(low_PxK, 0), np.maximum(high_PxK, 0)


def rows(values_GxK: np.ndarray, partition: Sequence[int]) -> np.ndarray:
  """Derivatives by a change of rows: sums over their groups, PxK."""
  sums_PxK = np.zeros((max(partition) + 1, values_GxK.shape[1]))
  np.add.at(sums_PxK, np.asarray(partition), values_GxK)
  return sums_PxK


def free_ways(
  quadratic: Quadratic, region: Region, partition: Sequence[int]
) -> np.ndarray:
  """Orthonormal ways to move rows (GK x F), the entries that are held apart.

  Held: at a bound, and the row loses by leaving it. An upper bound that the
  lower ones of the others imply is none.
  """
  g, k = quadratic.weights_GxK.shape
  slopes_PxK = rows(quadratic.gradient_GxK, partition)
  low_PxK, high_PxK = room(quadratic.weights_GxK, region, partition)
  lowest_K = np.array(region.lowest_K)
  is_capped_K = region.highest < 1 - lowest_K.sum() + lowest_K - _TOLERANCE
  is_low = low_PxK > -capped_rows.AT_BOUND
  is_high = is_capped_K & (high_PxK < capped_rows.AT_BOUND)
  ways = []
  for row, slopes_K in enumerate(slopes_PxK):
    falling = np.mean(slopes_K[~is_low[row]])
    rising = np.mean(slopes_K[~is_high[row]])
    is_held = is_low[row] & (slopes_K >= falling)
    free = np.flatnonzero(~(is_held | is_high[row] & (slopes_K <= rising)))
    if len(free) > 1:
      way_KxF = np.zeros((k, len(free) - 1))
      way_KxF[free] = capped_rows.sum_zero_basis(len(free))
      ways.append(np.kron(np.equal(partition, row)[:, None], way_KxF))
  return np.concatenate([np.zeros((g * k, 0)), *ways], axis=1)


def problems(
  quadratic: Quadratic,
  region: Region,
  partitions: Mapping[str, Sequence[int]],
  ridges: Sequence[float],
) -> list[str]:
  """All that is wrong with the input, so that the solver meets none of it."""
  shape = np.shape(quadratic.weights_GxK)
  if len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
    return [f"weights must be G x K of two checkpoints or more, got {shape}"]
  g, k = shape
  c = np.size(quadratic.counts_C)
  wanted: dict[str, tuple[Any, tuple[int, ...]]] = {
    "weights": (quadratic.weights_GxK, shape),
    "gradients": (quadratic.gradients_CxGxK, (c, g, k)),
    "counts": (quadratic.counts_C, (c,)),
    "curvature": (quadratic.curvature, (g * k, g * k)),
    "lowest weights": (region.lowest_K, (k,)),
  }
  found = []
  for name, (values, expected) in wanted.items():
    if np.shape(values) != expected:
      found.append(f"{name} must be {expected}, got {np.shape(values)}")
    elif not np.all(np.isfinite(values)):
      found.append(f"{name} must be finite")
  if not c or np.any(np.less_equal(quadratic.counts_C, 0)):
    found.append("every document needs tokens, and there must be one")
  for name, partition in partitions.items():
    used = sorted(set(partition))
    if len(partition) != g or used != list(range(len(used))):
      found.append(
        f"partition {name!r} must give each of the {g} groups a row, numbered"
        f" from 0, got {list(partition)}"
      )
  for ridge in ridges:
    if not 0 <= ridge < np.inf:
      found.append(f"a ridge must be finite and not below 0, got {ridge}")
  if not partitions or not len(ridges):
    found.append("a partition and a ridge are needed")
  return found or _bad_values(quadratic, region)


def _bad_values(quadratic: Quadratic, region: Region) -> list[str]:
  found = []
  weights_GxK, curvature = quadratic.weights_GxK, quadratic.curvature
  lowest_K = np.array(region.lowest_K)
  size = np.abs(curvature).max()
  if np.abs(curvature - curvature.T).max() > _TOLERANCE * size:
    found.append("the curvature must be symmetric")
  elif np.linalg.eigvalsh(curvature)[0] < -_TOLERANCE * size * len(curvature):
    found.append("the curvature must have no eigenvalue below zero")
  if np.abs(weights_GxK.sum(1) - 1).max() > _TOLERANCE:
    found.append("every row of weights must sum to one")
  below = np.any(weights_GxK < lowest_K - _TOLERANCE)
  if below or np.any(weights_GxK > region.highest + _TOLERANCE):
    found.append(f"weights must be from {region.lowest_K} to {region.highest}")
  return found
