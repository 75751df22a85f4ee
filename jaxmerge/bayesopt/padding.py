"""Trials as arrays of a few fixed sizes, so that nothing compiles per trial.

N points, padded to a power of two; D coordinates; E = D + 1, where the last
coordinate is the mask: 1 for a point and 0 for padding.
"""

from typing import Any, NamedTuple

import numpy as np

_SMALLEST_BUCKET = 16


class Observations(NamedTuple):
  """Everything known so far, in original units and maximisation sign.

  Attributes:
    points_NxD: coordinates, on the simplex or in the unit box.
    values_N: scores, larger is better.
    stderrs_N: known standard error of each score, 0 where exact.
  """

  points_NxD: np.ndarray
  values_N: np.ndarray
  stderrs_N: np.ndarray


class Padded(NamedTuple):
  """Standardised targets and noise variances; NumPy or JAX arrays."""

  points_NxE: Any
  values_N: Any
  noise_N: Any


def bucket_size(num_points: int) -> int:
  """The power of two, at least 16, that a number of points is padded to."""
  return max(_SMALLEST_BUCKET, 1 << max(num_points - 1, 0).bit_length())


def standardisation(values_N: np.ndarray) -> tuple[float, float]:
  """Centre and scale; scale 1 where all scores are equal up to rounding."""
  centre = float(np.mean(values_N))
  scale = float(np.std(values_N))
  if scale <= 1e-13 * float(np.max(np.abs(values_N))):
    scale = 1.0
  return centre, scale


def pad(observations: Observations, centre: float, scale: float) -> Padded:
  """Standardises and pads: padding has target 0, noise 1 and mask 0."""
  points_NxD = np.asarray(observations.points_NxD, np.float64)
  num_points, dimension = points_NxD.shape
  bucket = bucket_size(num_points)
  points_NxE = np.zeros((bucket, dimension + 1))
  points_NxE[:num_points, :-1] = points_NxD
  points_NxE[:num_points, -1] = 1.0
  values_N = np.zeros(bucket)
  values_N[:num_points] = (observations.values_N - centre) / scale
  noise_N = np.ones(bucket)
  noise_N[:num_points] = (observations.stderrs_N / scale) ** 2
  return Padded(points_NxE, values_N, noise_N)
