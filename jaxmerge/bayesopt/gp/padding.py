"""Trials as arrays of a few fixed sizes, so that nothing compiles per trial.

N points, D coordinates, P directions of slopes; R rows, padded to a power of
two; E columns of a row (model.py says which).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_SMALLEST_BUCKET = 16
# More rows than this make a suggestion slow: the slopes of the worst trials
# are left out.
MOST_ROWS = 128


class Observations(NamedTuple):
  """Everything known so far, in original units; larger scores are better.

  Attributes:
    points_NxD: coordinates, on simplices or in the unit box.
    values_N: scores.
    stderrs_N: known standard error of each score, 0 where exact.
    gradients_NxD: d score / d coordinate, NaN where not known; None: not used.
    gradient_stderrs_N: of a slope along a direction of length one.
    pending_MxD: points that are being evaluated.
  """

  points_NxD: np.ndarray
  values_N: np.ndarray
  stderrs_N: np.ndarray
  gradients_NxD: np.ndarray | None = None
  gradient_stderrs_N: np.ndarray | None = None
  pending_MxD: np.ndarray | Sequence[np.ndarray] = ()


class Padded(NamedTuple):
  """Standardised targets and noise variances; NumPy or JAX arrays.

  Attributes:
    rows_NxE: values, then slopes.
    values_N: standardised; 0 where pending or padded.
    noise_N: known variances; 1 for padding.
    pending_N: 1 for a row without a score yet.
  """

  rows_NxE: Any
  values_N: Any
  noise_N: Any
  pending_N: Any


def observed(data: Padded, dimension: int) -> Padded:
  """Pending rows as padding; of JAX arrays."""
  seen_N = 1.0 - data.pending_N
  mask_N = data.rows_NxE[:, dimension] * seen_N
  return data._replace(
    rows_NxE=data.rows_NxE.at[:, dimension].set(mask_N),
    noise_N=jnp.where(data.pending_N > 0, 1.0, data.noise_N),
  )


def bucket_size(num_points: int) -> int:
  """The power of two, at least 16, that a number of points is padded to."""
  return max(_SMALLEST_BUCKET, 1 << max(num_points - 1, 0).bit_length())


def standardisation(
  observations: Observations, directions_PxD: np.ndarray
) -> tuple[float, float]:
  """Centre and scale; scale 1 where all scores are equal up to rounding.

  The scale is the scores' standard deviation, or what the slopes tell of it:
  a parabola over a unit interval with its lowest point in the middle deviates
  by 0.13 times its root mean square slope.
  """
  values_N = observations.values_N
  centre = float(np.mean(values_N))
  scale = float(np.std(values_N))
  if scale <= 1e-13 * float(np.max(np.abs(values_N))):
    scale = 0.0
  if observations.gradients_NxD is not None:
    slopes_NxP = observations.gradients_NxD @ directions_PxD.T
    known = slopes_NxP[np.isfinite(slopes_NxP)]
    if known.size:
      scale = max(scale, 0.13 * float(np.sqrt(np.mean(known**2))))
  return centre, scale or 1.0


def _with_slopes(
  known: Observations, num_values: int, num_slopes: int
) -> np.ndarray:
  """Indices of the trials whose slopes are used: the best that rows allow."""
  assert known.gradients_NxD is not None
  has_N = np.isfinite(known.gradients_NxD).all(axis=1)
  most = max((MOST_ROWS - num_values) // num_slopes, 1)
  ranked = np.argsort(np.where(has_N, -known.values_N, np.inf), kind="stable")
  return np.sort(ranked[: min(most, int(has_N.sum()))])


def pad(
  observations: Observations,
  centre: float,
  scale: float,
  directions_PxD: np.ndarray,
) -> Padded:
  """Standardises and pads: padding has target 0, noise 1 and mask 0.

  Args:
    observations: of which the gradients, if any, become slopes.
    centre, scale: of the values.
    directions_PxD: of the slopes.
  """
  known = observations
  points_NxD = np.asarray(known.points_NxD, np.float64)
  num_points, dimension = points_NxD.shape
  pending_MxD = np.reshape(known.pending_MxD, (-1, dimension))
  unknown_M = np.zeros(len(pending_MxD))
  points = [points_NxD, pending_MxD]
  values = [(known.values_N - centre) / scale, unknown_M]
  noise = [(known.stderrs_N / scale) ** 2, unknown_M]
  num_values = num_points + len(pending_MxD)
  rest = [np.ones((num_values, 1))]
  if known.gradients_NxD is not None:
    assert known.gradient_stderrs_N is not None
    num_slopes = len(directions_PxD)
    used = _with_slopes(known, num_values, num_slopes)
    points.append(np.repeat(points_NxD[used], num_slopes, axis=0))
    along = np.tile(directions_PxD, (len(used), 1))
    along_RxD = np.concatenate([np.zeros((num_values, dimension)), along])
    rest = [np.ones((len(along_RxD), 1)), along_RxD]
    slopes_NxP = known.gradients_NxD[used] @ directions_PxD.T / scale
    values.append(slopes_NxP.ravel())
    stderrs_N = known.gradient_stderrs_N[used] / scale
    lengths_P = np.linalg.norm(directions_PxD, axis=1)
    noise.append((stderrs_N[:, None] * lengths_P).ravel() ** 2)
  rows_RxE = np.hstack([np.concatenate(points), *rest])
  bucket = bucket_size(len(rows_RxE))
  padding = (0, bucket - len(rows_RxE))
  pending_R = np.zeros(bucket)
  pending_R[num_points:num_values] = 1.0
  return Padded(
    np.pad(rows_RxE, (padding, (0, 0))),
    np.pad(np.concatenate(values), padding),
    np.pad(np.concatenate(noise), padding, constant_values=1.0),
    pending_R,
  )
