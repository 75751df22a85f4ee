"""Averages whose weights go by the losses of the inputs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmerge.config_fields import key
from jaxmerge.errors import InputError
from jaxmerge.merging.method import merge_method
from jaxmerge.simplex.bounds import normalised

Loss = Callable[[list[float]], float]


@merge_method(
  "greedy",
  "greedy soup: an input joins if the mean is not worse on the search split"
  " (arXiv 2203.05482)",
  acts="on losses",
)
def greedy_soup(
  losses_K: Sequence[float], loss: Loss, knobs: Any = None
) -> list[float]:
  """The mean of those that do not raise the loss, the best first.

  Wortsman et al., recipe 1: in the order of their losses a checkpoint joins if
  the mean with it is at least as good. Never worse than the best checkpoint
  alone.

  Raises:
    InputError: no checkpoint has a finite loss.
  """
  order = np.argsort(losses_K, kind="stable").tolist()
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


@dataclasses.dataclass(frozen=True)
class MetricKnobs:
  exponent: float = key(1.0, "the larger, the more the best weighs", at_least=0)


@merge_method(
  "metric",
  "weights (1 / loss)^`exponent`, losses on the search split (arXiv"
  " 2504.18580)",
  acts="on losses",
  knobs=MetricKnobs,
)
def metric_weights(
  losses_K: Sequence[float], loss: Loss, knobs: MetricKnobs
) -> list[float]:
  """Raises InputError for a loss that is not positive and finite."""
  losses = np.asarray(losses_K, np.float64)
  if not (np.isfinite(losses).all() and (losses > 0).all()):
    raise InputError(f"losses must be positive numbers, got {list(losses_K)}")
  # Of the lowest, so that a large exponent does not underflow.
  return normalised(((losses.min() / losses) ** knobs.exponent).tolist())
