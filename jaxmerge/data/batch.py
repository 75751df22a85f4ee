"""The sequences that a training step is fed.

B: sequences. L: targets in a sequence.
"""

from typing import Any, NamedTuple


class Batch(NamedTuple):
  """Sequences to train on, as arrays of NumPy or JAX or what stands for them.

  Attributes:
    tokens_BxL1: int32[B, L + 1], inputs [:, :-1] and targets [:, 1:].
    segments_BxL1: int32[B, L + 1], the piece of a document that each token is
      of, counted from 1 in each sequence; 0: padding. None where sequences are
      cut from a stream, in which every target counts.
  """

  tokens_BxL1: Any
  segments_BxL1: Any = None
