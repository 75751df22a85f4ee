"""Bounds of a merge's weights, and the unit points that stand for them.

K checkpoints (oldest first). A unit point v has K entries >= 0 that sum to 1.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxmerge.errors import InputError, check

_TOLERANCE = 1e-9
# A weight this near to zero is a rounding of it.
_ROUNDING = 1e-14
# Of every weight, where they may be negative.
LOWEST, HIGHEST = -1.0, 2.0


class Bounds(NamedTuple):
  """Bounds of the weights: of the last checkpoint's, or of each alike.

  w_k = lowest_k + s v_k with s = 1 - sum_k lowest_k. The last checkpoint's
  weight reaches from alpha to 1 + beta: its lowest is alpha, the others' is
  -beta / (K - 1), and the vertices of a unit point give it alpha or 1 + beta.
  With two checkpoints and beta = 0 w_last is the lambda in [alpha, 1] of arXiv
  2403.19390, algorithm 1; beta > 0 extrapolates past the last checkpoint.

  With `negative` every weight is in [-1, 2]: w = -1 + (K + 1) v, and no v is
  above 3 / (K + 1).
  """

  alpha: float = 0.0
  beta: float = 0.0
  negative: bool = False

  @property
  def highest(self) -> float:
    """The largest weight of the last checkpoint, and of any."""
    return HIGHEST if self.negative else 1 + self.beta

  def region(self, count: int) -> tuple[tuple[float, ...], float]:
    """The lowest weight of each of so many checkpoints, the highest of any.

    Weights within these that sum to one are all that the bounds allow.

    Raises:
      InputError: impossible bounds.
    """
    check(self.problems())
    if self.negative:
      return (LOWEST,) * count, HIGHEST
    others = (
      (-self.beta / (count - 1) + 0.0,) * (count - 1) if count > 1 else ()
    )
    return (*others, self.alpha), self.highest

  def scale(self, count: int) -> float:
    """d weight / d coordinate of a unit point; InputError as region()."""
    lowest_K, _ = self.region(count)
    return 1 - math.fsum(lowest_K)

  def highest_unit(self, count: int) -> float:
    """The largest coordinate of a unit point; InputError as region()."""
    lowest_K, highest = self.region(count)
    room = highest - min(lowest_K, default=0.0)
    return min(room / self.scale(count), 1.0)

  @property
  def reach(self) -> str:
    """Words for the plain bounds of a weight, such as "from -1 to 2"."""
    lowest = LOWEST if self.negative else self.alpha
    return f"from {lowest:g} to {self.highest:g}"

  def problems(self) -> list[str]:
    found = []
    if not 0 <= self.alpha < 1:
      found.append(f"alpha must be in [0, 1), got {self.alpha}")
    if not 0 <= self.beta <= 1:
      found.append(f"beta must be in [0, 1], got {self.beta}")
    if self.negative and (self.alpha, self.beta) != (0, 0):
      found.append(
        "negative weights want alpha=0 and beta=0 (beta alone gives the others "
        f"negative weights), got alpha={self.alpha} and beta={self.beta}"
      )
    return found


def _check(
  values: Sequence[float], what: str, lowest: float, highest: float
) -> None:
  if not len(values):
    raise InputError(f"{what} must not be empty")
  off = abs(math.fsum(values) - 1)
  beyond = max(lowest - min(values), max(values) - highest)
  # Of weights >= 0 the sum says that none is above one.
  most = f", <= {highest:g}" if highest < 1 or lowest < 0 else ""
  if not max(off, beyond) <= _TOLERANCE:
    raise InputError(
      f"{what} must be >= {lowest:g}{most} and sum to 1, got"
      f" {[float(v) for v in values]}"
    )


def weights_from_unit(unit_K: Sequence[float], bounds: Bounds) -> list[float]:
  """Checkpoint weights of a unit point; a checkpoint alone is exactly that.

  Raises:
    InputError: impossible bounds, or `unit_K` not on the simplex or beyond
      them.
  """
  lowest_K, _ = bounds.region(len(unit_K))
  scale = bounds.scale(len(unit_K))
  _check(unit_K, "a unit point", 0.0, bounds.highest_unit(len(unit_K)))
  weights = [low + scale * float(v) for low, v in zip(lowest_K, unit_K)]
  weights = [0.0 if abs(w) < _ROUNDING else w for w in weights]
  alone = [k for k, w in enumerate(weights) if w]
  return [1.0 if alone == [k] else w for k, w in enumerate(weights)]


def unit_from_weights(
  weights_K: Sequence[float], bounds: Bounds
) -> list[float]:
  """The inverse of weights_from_unit.

  Raises:
    InputError: impossible bounds, or weights that lie outside of them.
  """
  lowest_K, highest = bounds.region(len(weights_K))
  _check(weights_K, "weights", min(lowest_K[:-1], default=0.0), highest)
  if weights_K[-1] < lowest_K[-1] - _TOLERANCE:
    raise InputError(
      f"the last weight must be at least alpha={bounds.alpha}, got"
      f" {weights_K[-1]}"
    )
  scale = bounds.scale(len(weights_K))
  return normalised([(w - low) / scale for low, w in zip(lowest_K, weights_K)])


def normalised(unit_K: Sequence[float]) -> list[float]:
  """Clips at 0 and divides by the sum: Python floats that sum to 1 +- 1e-15."""
  clipped = [max(float(v), 0.0) for v in unit_K]
  total = math.fsum(clipped)
  return [v / total for v in clipped]


def is_same(a_K: Sequence[float], b_K: Sequence[float]) -> bool:
  """Says whether two points are equal up to rounding."""
  return math.dist(a_K, b_K) <= _TOLERANCE
