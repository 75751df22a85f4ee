"""Standard errors of losses and of paired differences, clustered by document.

N sequences, C documents.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxmerge.evaluation.heldout_loss import Score


class Estimate(NamedTuple):
  """A mean in nats/token and its standard error."""

  mean: float
  stderr: float


def loss(score: Score) -> Estimate:
  """Mean loss with its standard error over documents."""
  return ratio(score.losses_N, score)


def difference(score: Score, reference: Score) -> Estimate:
  """Mean loss of `score` minus that of `reference`, paired by sequence.

  Both must have scored the same sequences. Exactly zero when every sequence
  has the same loss.
  """
  return ratio(score.losses_N - reference.losses_N, score)


def ratio(values_N: np.ndarray, score: Score) -> Estimate:
  """Sum of values over sum of targets, with its cluster-robust error.

  Linearised: with u_c the sum over the sequences of document c of (value -
  mean * targets), the variance is C / (C - 1) * sum_c u_c^2 / (sum of
  targets)^2 (Cochran, Sampling Techniques, 3rd edition, section 9A).
  """
  targets = score.targets_N.sum()
  mean = float(values_N.sum() / targets)
  residuals_N = values_N - mean * score.targets_N
  _, cluster_N = np.unique(score.documents_N, return_inverse=True)
  residuals_C = np.bincount(cluster_N, weights=residuals_N)
  clusters = len(residuals_C)
  if clusters < 2:
    return Estimate(mean, math.inf)
  variance = clusters / (clusters - 1) * float(np.sum(residuals_C**2))
  return Estimate(mean, math.sqrt(variance) / float(targets))
