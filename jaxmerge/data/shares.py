"""Exact shares of an endless sequence, by weights.

K: parts.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction


def whole_weights(weights: Mapping[str, float]) -> dict[str, int]:
  """The smallest integers in the ratio of weights, as they are written.

  0.7 and 0.3 are 7 and 3, though no float is 7/10.
  """
  exact = {name: Fraction(repr(float(w))) for name, w in weights.items()}
  scale = math.lcm(*(w.denominator for w in exact.values()))
  scaled = {name: int(w * scale) for name, w in exact.items()}
  divisor = math.gcd(*scaled.values())
  return {name: w // divisor for name, w in scaled.items()}


def pick(weights_K: Sequence[int], index: int) -> tuple[int, int]:
  """Which part an element is of, and how many of that came before it.

  Of the first n elements a part has its share of n, but for less than K. Each
  part in turn takes the rounded share of what the parts before it have left.
  """
  left = sum(weights_K)
  for part, weight in enumerate(weights_K):
    others, after = (n * (left - weight) // left for n in (index, index + 1))
    if others == after:
      return part, index - others
    index, left = others, left - weight
  raise ValueError(f"weights {weights_K} are not all above 0")


def apportioned(weights: Mapping[str, float], total: int) -> dict[str, int]:
  """Shares of a total by the largest remainder; equal ones in their order."""
  whole = whole_weights(weights)
  unit = sum(whole.values())
  counts = {name: total * w // unit for name, w in whole.items()}
  by_rest = sorted(whole, key=lambda name: -(total * whole[name] % unit))
  for name in by_rest[: total - sum(counts.values())]:
    counts[name] += 1
  return counts
