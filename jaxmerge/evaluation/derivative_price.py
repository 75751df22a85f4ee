"""The price of derivatives of a merged loss by the weights, before they are.

G groups of parameters with weights of their own, K checkpoints.
"""

from typing import NamedTuple

from jaxmerge.evaluation.evaluator import (
  SECANT_SEQUENCES,
  WEIGHT_JVP_PASSES,
  WEIGHT_VJP_PASSES,
)

# Of different documents, that a curvature is of, at least and at most: of 8 it
# differs by 4% from that of 64 (docs/results/solve.md).
_FEWEST, _MOST = 4, 16
# What a curvature may cost beyond the fewest, in forward passes of the split.
_CURVATURE_PASSES = 8


def curvature_sequences(directions: int, sequences: int) -> int:
  """Sequences of a split that a curvature along directions is of.

  Args:
    directions: G (K - 1).
    sequences: of the split.
  """
  paid = _CURVATURE_PASSES * sequences // (WEIGHT_JVP_PASSES * directions)
  return min(max(paid, _FEWEST), _MOST, sequences)


class DerivativePasses(NamedTuple):
  """The price of derivatives by the weights, in forward passes of a split.

  Attributes:
    slopes: of gradients, beside a curvature.
    bends: of the curvature.
    again: of gradients alone.
  """

  slopes: float
  bends: float
  again: float


def derivative_passes(
  directions: int, sequences: int, *, on_devices: bool
) -> DerivativePasses:
  """Prices derivatives along directions.

  Of trees that are read for every merge they are differences of plain scores,
  one a direction, and of one more; the curvature's are wanted for gradients
  too.

  Args:
    directions: G (K - 1).
    sequences: of the split.
    on_devices: the trees are there.
  """
  share = curvature_sequences(directions, sequences) / sequences
  if on_devices:
    bends = WEIGHT_JVP_PASSES * directions * share
    return DerivativePasses(WEIGHT_VJP_PASSES, bends, WEIGHT_VJP_PASSES)
  scores = directions + 1
  again = scores * (1 + min(SECANT_SEQUENCES, sequences) / sequences)
  return DerivativePasses(scores, scores * share, again)
