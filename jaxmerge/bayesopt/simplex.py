"""Points on the simplex and the checkpoint weights that they stand for.

K checkpoints (oldest first), C candidates, P grid points. A unit point v has
K entries >= 0 that sum to 1; the weights are w = alpha e_last + (1 - alpha) v,
so that the last checkpoint never weighs less than alpha. With two checkpoints
w_last is the lambda in [alpha, 1] of arXiv 2403.19390, algorithm 1.
"""

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import qmc

from jaxmerge.errors import InputError

_TOLERANCE = 1e-9


def _check_alpha(alpha: float) -> None:
  if not 0 <= alpha < 1:
    raise InputError(f"alpha must be in [0, 1), got {alpha}")


def _check_sums_to_one(values: Sequence[float], what: str) -> None:
  if not len(values):
    raise InputError(f"{what} must not be empty")
  if min(values) < -_TOLERANCE or abs(math.fsum(values) - 1) > _TOLERANCE:
    raise InputError(
      f"{what} must be >= 0 and sum to 1, got {[float(v) for v in values]}"
    )


def weights_from_unit(unit_K: Sequence[float], alpha: float) -> list[float]:
  """Checkpoint weights of a unit point; a vertex for e_last stays exact.

  Raises:
    InputError: alpha outside [0, 1), or `unit_K` not on the simplex.
  """
  _check_alpha(alpha)
  _check_sums_to_one(unit_K, "a unit point")
  weights = [(1 - alpha) * float(v) for v in unit_K]
  weights[-1] += alpha
  return weights


def unit_from_weights(weights_K: Sequence[float], alpha: float) -> list[float]:
  """The inverse of weights_from_unit.

  Raises:
    InputError: alpha outside [0, 1), weights not on the simplex, or a last
      weight below alpha.
  """
  _check_alpha(alpha)
  _check_sums_to_one(weights_K, "weights")
  if weights_K[-1] < alpha - _TOLERANCE:
    raise InputError(
      f"the last weight must be at least alpha={alpha}, got {weights_K[-1]}"
    )
  unit = [max(float(w), 0.0) / (1 - alpha) for w in weights_K[:-1]]
  unit.append(max((float(weights_K[-1]) - alpha) / (1 - alpha), 0.0))
  return normalised(unit)


def normalised(unit_K: Sequence[float]) -> list[float]:
  """Clips at 0 and divides by the sum: Python floats that sum to 1 +- 1e-15."""
  clipped = [max(float(v), 0.0) for v in unit_K]
  total = math.fsum(clipped)
  return [v / total for v in clipped]


def unit_from_sticks(sticks: Sequence[float]) -> list[float]:
  """A unit point from K - 1 independent parameters in [0, 1].

  Stick breaking from the last weight on, each part bent so that uniform
  parameters give uniform points of the simplex: with m parts to come,
  v = left (1 - (1 - s)^(1/m)) (a Beta(1, m) quantile). With two checkpoints
  the one parameter is the last weight itself.
  """
  unit: list[float] = []
  left = 1.0
  for to_come, stick in zip(range(len(sticks), 0, -1), sticks, strict=True):
    rest = left * (1 - stick) ** (1 / to_come)
    unit.insert(0, left - rest)
    left = rest
  return [left, *unit]


def sticks_from_unit(unit_K: Sequence[float]) -> list[float]:
  """The inverse of unit_from_sticks; 0 where nothing is left to break."""
  sticks: list[float] = []
  left = 1.0
  for to_come in range(len(unit_K) - 1, 0, -1):
    rest = max(left - float(unit_K[to_come]), 0.0)
    sticks.append(1 - (rest / left) ** to_come if left > 0 else 0.0)
    left = rest
  return sticks


def vertices(num_weights: int) -> np.ndarray:
  """The K vertices (KxK), last one first: for K=2, lambda = 1 then alpha."""
  return np.eye(num_weights)[::-1].copy()


def project(points_CxK: Array) -> Array:
  """Euclidean projection of each row onto the simplex; can be jitted.

  Duchi et al. 2008, figure 1: subtract the threshold at which the positive
  parts sum to one.
  """
  descending = jnp.flip(jnp.sort(points_CxK, axis=-1), axis=-1)
  excess = jnp.cumsum(descending, axis=-1) - 1
  counts = jnp.arange(1, points_CxK.shape[-1] + 1)
  support = jnp.sum(descending * counts > excess, axis=-1, keepdims=True)
  threshold = jnp.take_along_axis(excess, support - 1, axis=-1) / support
  return jnp.maximum(points_CxK - threshold, 0)


def candidates(num_weights: int, num_points: int, seed: int) -> np.ndarray:
  """Low-discrepancy unit points (CxK): spacings of sorted Sobol points.

  The gaps between K - 1 sorted uniforms are uniform on the simplex. The number
  of points is best a power of two.
  """
  if num_weights == 1:
    return np.ones((num_points, 1))
  sobol = qmc.Sobol(num_weights - 1, scramble=True, rng=seed)
  cuts = np.sort(sobol.random(num_points), axis=-1)
  edges = np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
  return np.diff(edges, axis=-1)


def grid(num_weights: int, num_points: int) -> np.ndarray:
  """Regular weights (PxK): for K=2, lambda = linspace(0, 1, num_points).

  For more checkpoints the largest lattice {w : q w integer} that has at most
  `num_points` points, and never fewer than the K vertices (q = 1).
  """
  if num_weights == 1:
    return np.ones((1, 1))
  if num_weights == 2:
    lambdas = np.linspace(0, 1, max(num_points, 2))
    return np.stack([1 - lambdas, lambdas], axis=-1)
  q = 1
  while math.comb(q + num_weights, num_weights - 1) <= num_points:
    q += 1
  # Stars and bars: K - 1 bars among q + K - 1 places, the gaps count stars.
  bars = np.array(
    list(itertools.combinations(range(q + num_weights - 1), num_weights - 1))
  )
  edges = np.pad(
    bars,
    ((0, 0), (1, 1)),
    constant_values=((0, 0), (-1, q + num_weights - 1)),
  )
  return (np.diff(edges, axis=-1) - 1) / q
