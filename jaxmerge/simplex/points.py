"""Points on the simplex: grids, low-discrepancy points, projection.

K checkpoints (oldest first), C candidates, P grid points, D coordinates.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import qmc

# The reach of a unit point's coordinates.
UNIT = (0.0, 1.0)


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


def project(
  points_CxD: Array, groups: int = 1, reach: tuple[float, float] = UNIT
) -> Array:
  """Euclidean projection of each row onto the domain; can be jitted.

  The domain is so many simplices side by side, of coordinates within `reach`
  that sum to one; 0: the unit box. Duchi et al. 2008, figure 1: subtract the
  threshold at which the positive parts sum to one.
  """
  if not groups:
    return jnp.clip(points_CxD, 0, 1)
  shape = points_CxD.shape
  points_CxK = points_CxD.reshape(*shape[:-1], groups, shape[-1] // groups)
  if reach != UNIT:
    return _project_within(points_CxK, *reach).reshape(shape)
  descending = jnp.flip(jnp.sort(points_CxK, axis=-1), axis=-1)
  excess = jnp.cumsum(descending, axis=-1) - 1
  counts = jnp.arange(1, points_CxK.shape[-1] + 1)
  support = jnp.sum(descending * counts > excess, axis=-1, keepdims=True)
  threshold = jnp.take_along_axis(excess, support - 1, axis=-1) / support
  return jnp.maximum(points_CxK - threshold, 0).reshape(shape)


def _project_within(points_CxK: Array, lowest: float, highest: float) -> Array:
  """The nearest points with coordinates within bounds that sum to one.

  clip(x - t) at the threshold t where it does. Its sum falls piecewise
  linearly from K times the highest: coordinate k moves while t is between
  x_k - highest and x_k - lowest.
  """
  count = points_CxK.shape[-1]
  knots = jnp.concatenate([points_CxK - highest, points_CxK - lowest], axis=-1)
  order = jnp.argsort(knots, axis=-1)
  knots = jnp.take_along_axis(knots, order, axis=-1)
  moving = jnp.cumsum(jnp.where(order < count, 1.0, -1.0), axis=-1)
  falls = jnp.cumsum(moving[..., :-1] * jnp.diff(knots, axis=-1), axis=-1)
  # So much the sum has to fall: it has at the end of the piece that is sought.
  wanted = count * highest - 1
  piece = jnp.sum(falls < wanted, axis=-1, keepdims=True)
  piece = jnp.minimum(piece, 2 * count - 2)
  fallen, knot, slope = (
    jnp.take_along_axis(values, piece, axis=-1)
    for values in (falls, knots[..., 1:], moving)
  )
  threshold = knot - (fallen - wanted) / jnp.maximum(slope, 1.0)
  return jnp.clip(points_CxK - threshold, lowest, highest)


def within(points_CxK: np.ndarray, highest: float) -> np.ndarray:
  """Pulls unit points towards the centre until no entry is above `highest`."""
  centre = 1 / points_CxK.shape[-1]
  beyond = points_CxK.max(axis=-1, keepdims=True) - centre
  room = highest - centre
  part = np.divide(room, beyond, out=np.ones_like(beyond), where=beyond > room)
  return centre + part * (points_CxK - centre)


@functools.cache
def candidates(
  num_weights: int, num_points: int, seed: int, groups: int = 1
) -> np.ndarray:
  """Low-discrepancy unit points (CxD): spacings of sorted Sobol points.

  The gaps between K - 1 sorted uniforms are uniform on the simplex. The number
  of points is best a power of two. Points of several groups lie side by side.
  """
  sobol = qmc.Sobol(groups * (num_weights - 1), scramble=True, rng=seed)
  drawn = sobol.random(num_points).reshape(num_points, groups, -1)
  gaps = np.diff(np.sort(drawn, axis=-1), axis=-1, prepend=0.0, append=1.0)
  return gaps.reshape(num_points, -1)


def grid(num_weights: int, num_points: int) -> np.ndarray:
  """Regular weights (PxK): for K=2, lambda = linspace(0, 1, num_points).

  For more checkpoints the largest lattice {w : q w integer} that has at most
  `num_points` points, and never fewer than the K vertices (q = 1).
  """
  if num_weights == 2:
    lambdas = np.linspace(0, 1, max(num_points, 2))
    return np.stack([1 - lambdas, lambdas], axis=-1)
  q = 1
  while math.comb(q + num_weights, num_weights - 1) <= num_points:
    q += 1
  # Stars and bars: K - 1 bars among q + K - 1 places, the gaps count stars.
  places = q + num_weights - 1
  bars = list(itertools.combinations(range(places), num_weights - 1))
  return (np.diff(bars, axis=-1, prepend=-1, append=places) - 1) / q
