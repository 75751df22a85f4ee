"""Trials as arrays of a few fixed sizes, so that nothing compiles per trial.

N points, D coordinates, P directions of slopes; R rows, padded to a power of
two; E columns of a row (process.py says which).
"""

from typing import Any, NamedTuple

import numpy as np

_SMALLEST_BUCKET = 16
# More rows than this make a suggestion slow: the slopes of the worst trials
# are left out.
MOST_ROWS = 128


class Observations(NamedTuple):
  """Everything known so far, in original units and maximisation sign.

  Attributes:
    points_NxD: coordinates, on simplices or in the unit box.
    values_N: scores, larger is better.
    stderrs_N: known standard error of each score, 0 where exact.
    gradients_NxD: d score / d coordinate, NaN where not known; None: gradients
      are not used.
    gradient_stderrs_N: known standard error of a gradient's slope along a
      direction of length one.
    pending_MxD: points that are being evaluated.
  """

  points_NxD: np.ndarray
  values_N: np.ndarray
  stderrs_N: np.ndarray
  gradients_NxD: np.ndarray | None = None
  gradient_stderrs_N: np.ndarray | None = None
  pending_MxD: np.ndarray | None = None


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
  """Whose slopes are told: of the best trials, as many as rows allow."""
  assert known.gradients_NxD is not None
  has_N = np.isfinite(known.gradients_NxD).all(axis=1)
  most = max((MOST_ROWS - num_values) // num_slopes, 1)
  ranked = np.argsort(np.where(has_N, -known.values_N, np.inf), kind="stable")
  kept_N = np.zeros(len(has_N), bool)
  kept_N[ranked[:most]] = True
  return has_N & kept_N


def pad(
  observations: Observations,
  centre: float,
  scale: float,
  directions_PxD: np.ndarray,
) -> Padded:
  """Standardises and pads: padding has target 0, noise 1 and mask 0.

  Args:
    observations: of which the gradients, if any, become slopes.
    centre: of the values.
    scale: of the values.
    directions_PxD: of the slopes.
  """
  known = observations
  points_NxD = np.asarray(known.points_NxD, np.float64)
  dimension = points_NxD.shape[1]
  pending_MxD = known.pending_MxD
  if pending_MxD is None:
    pending_MxD = np.zeros((0, dimension))
  rows = [np.concatenate([points_NxD, pending_MxD])]
  values = [(known.values_N - centre) / scale, np.zeros(len(pending_MxD))]
  noise = [(known.stderrs_N / scale) ** 2, np.zeros(len(pending_MxD))]
  along = [np.zeros_like(rows[0])]
  if known.gradients_NxD is not None:
    assert known.gradient_stderrs_N is not None
    has_N = _with_slopes(known, len(rows[0]), len(directions_PxD))
    slopes_NxP = known.gradients_NxD[has_N] @ directions_PxD.T / scale
    stderrs_N = known.gradient_stderrs_N[has_N] / scale
    lengths_P = np.linalg.norm(directions_PxD, axis=1)
    rows.append(np.repeat(points_NxD[has_N], len(directions_PxD), axis=0))
    along.append(np.tile(directions_PxD, (int(has_N.sum()), 1)))
    values.append(slopes_NxP.ravel())
    noise.append((stderrs_N[:, None] * lengths_P).ravel() ** 2)
  all_RxD = np.concatenate(rows)
  bucket = bucket_size(len(all_RxD))
  width = dimension + 1 if len(rows) == 1 else 2 * dimension + 1
  padded = Padded(
    np.zeros((bucket, width)),
    np.zeros(bucket),
    np.ones(bucket),
    np.zeros(bucket),
  )
  count = len(all_RxD)
  padded.rows_NxE[:count, :dimension] = all_RxD
  padded.rows_NxE[:count, dimension] = 1.0
  if len(rows) > 1:
    padded.rows_NxE[:count, dimension + 1 :] = np.concatenate(along)
  padded.values_N[:count] = np.concatenate(values)
  padded.noise_N[:count] = np.concatenate(noise)
  padded.pending_N[len(points_NxD) : len(rows[0])] = 1.0
  return padded
