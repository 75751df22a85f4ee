"""Standard errors of scores and of paired differences, clustered.

N items, C clusters of them.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxmerge.evaluation.score import Score


class Estimate(NamedTuple):
  """A mean in the unit of its score, and its standard error."""

  mean: float
  stderr: float


def difference(score: Score, reference: Score) -> Estimate:
  """The mean of `score` minus that of `reference`, paired by item.

  Both must be of the same items. Exactly zero when every item has the same
  value.
  """
  return ratio(score.values_N - reference.values_N, score)


def ratio(values_N: np.ndarray, score: Score) -> Estimate:
  """Sum of values over sum of weights, with its cluster-robust error.

  Linearised: with u_c the sum over the items of cluster c of (value - mean *
  weight), the variance is C / (C - 1) * sum_c u_c^2 / (sum of weights)^2
  (Cochran, Sampling Techniques, 3rd edition, section 9A).
  """
  weight = score.weights_N.sum()
  mean = float(values_N.sum() / weight)
  residuals_N = values_N - mean * score.weights_N
  _, cluster_N = np.unique(score.clusters_N, return_inverse=True)
  residuals_C = np.bincount(cluster_N, weights=residuals_N)
  clusters = len(residuals_C)
  if clusters < 2:
    return Estimate(mean, math.inf)
  variance = clusters / (clusters - 1) * float(np.sum(residuals_C**2))
  return Estimate(mean, math.sqrt(variance) / float(weight))
