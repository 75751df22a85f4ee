"""Words on how sure weights are, and on what would bring better ones.

G groups of parameters, K checkpoints.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmerge.evaluation.domain import Domain
from jaxmerge.reporting.results import Precision
from jaxmerge.simplex import quadratic

_ALL = "all parameters"
# A larger split is told of with so many times the sequences.
_TIMES = 4
# Nats/token that are not worth a larger split, or further trials.
_LITTLE = 1e-4


class Estimate(NamedTuple):
  """Numbers about weights, as the study keeps them.

  Attributes:
    weights_GxK: that they are about.
    stderr_GxK: of each weight; 0 of one that is held at a bound.
    excess: expected loss above that of the best weights, nats/token.
    left: what the model says that other weights gain on the same split, by
      the groups and the ridge that gain most on documents left out.
    passes: forward passes of the split that measuring took; 0: it was known.
  """

  weights_GxK: list[list[float]]
  stderr_GxK: list[list[float]]
  excess: float
  left: float
  passes: float


def described(
  estimate: Estimate,
  domain: Domain,
  sequences: int,
  *,
  is_whole: bool = False,
  finder: str = "",
) -> Precision:
  """Words and numbers of a report.

  Args:
    estimate: of the weights.
    domain: names steps and groups.
    sequences: of the search split.
    is_whole: there are no further sequences to search on.
    finder: what would find better weights of the same split, if any would.
  """
  names = [name or _ALL for name in domain.groups.names_G]

  def by_group(rows: Sequence[Sequence[float]]) -> dict[str, dict[int, float]]:
    return {
      name: dict(zip(domain.steps, row, strict=True))
      for name, row in zip(names, rows, strict=True)
    }

  return Precision(
    advice(estimate, sequences, is_whole=is_whole, finder=finder),
    estimate.excess,
    by_group(estimate.weights_GxK),
    by_group(estimate.stderr_GxK),
    estimate.passes,
  )


def advice(
  estimate: Estimate,
  sequences: int,
  *,
  is_whole: bool = False,
  finder: str = "",
) -> str:
  """Says what would bring better weights; arguments as for `described`.

  Weights that are the best of the split are still short by the excess, as those
  that are best in truth would be on it: only what goes beyond that is worth
  further trials.
  """
  gain = quadratic.Precision(
    np.array(estimate.stderr_GxK), estimate.excess
  ).gain(_TIMES)
  if finder and estimate.left > estimate.excess + _LITTLE:
    return (
      f"other weights may be about {_amount(estimate.left)} better on this"
      f" split: {finder} would find them"
    )
  if gain < _LITTLE:
    return (
      f"the search split is large enough: {_TIMES} times as many sequences"
      f" would gain less than {_amount(_LITTLE)}"
    )
  if is_whole:
    return (
      f"the held-out text is the limit: {_TIMES} times as much would gain about"
      f" {_amount(gain)}"
    )
  return (
    f"the search split is the limit: {_TIMES * sequences} sequences"
    f" (config.search_sequences) would gain about {_amount(gain)}"
  )


def _amount(nats: float) -> str:
  # Two digits, of large ones without an exponent.
  return f"{float(f'{1e3 * nats:.2g}'):g} millinats/token"
