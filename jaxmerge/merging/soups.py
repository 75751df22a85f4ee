"""Weights chosen by the loss of each checkpoint, without a search.

K checkpoints.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxmerge.bayesopt.reach import normalised
from jaxmerge.errors import InputError


def greedy_soup(
  losses_K: Sequence[float], loss: Callable[[list[float]], float]
) -> list[float]:
  """The mean of those that do not raise the loss, the best first.

  Wortsman et al., arXiv 2203.05482, recipe 1: in the order of their losses a
  checkpoint joins if the mean with it is at least as good. Never worse than
  the best checkpoint alone.

  Args:
    losses_K: of each checkpoint alone.
    loss: of the merge at given weights (K), on the same split.

  Raises:
    InputError: no checkpoint has a finite loss.
  """
  order = [int(k) for k in np.argsort(losses_K, kind="stable")]
  order = [k for k in order if np.isfinite(losses_K[k])]
  if not order:
    raise InputError("no checkpoint has a finite loss")
  members, lowest = [order[0]], losses_K[order[0]]

  def mean(chosen: Sequence[int]) -> list[float]:
    return normalised([float(k in chosen) for k in range(len(losses_K))])

  for k in order[1:]:
    found = loss(mean([*members, k]))
    if found <= lowest:
      members, lowest = [*members, k], found
  return mean(members)


def metric_weights(losses_K: Sequence[float], penalty: float) -> list[float]:
  """w_i in proportion to (1 / L_i)^penalty (arXiv 2504.18580).

  Args:
    losses_K: positive losses of the checkpoints.
    penalty: 0 is the uniform mean; the larger, the more the best weighs.

  Raises:
    InputError: a loss that is not positive and finite.
  """
  losses = np.asarray(losses_K, np.float64)
  if not (np.isfinite(losses).all() and (losses > 0).all()):
    raise InputError(f"losses must be positive numbers, got {list(losses_K)}")
  # Of the lowest, so that a large penalty does not underflow.
  return normalised(((losses.min() / losses) ** penalty).tolist())
