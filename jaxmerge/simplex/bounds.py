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


class Bounds(NamedTuple):
  """Bounds of the last checkpoint's weight: from alpha to 1 + beta.

  w_k = s v_k - beta / (K - 1) for all but the last, w_last = alpha + s v_last,
  with s = 1 - alpha + beta: the vertices of a unit point give the last
  checkpoint alpha or 1 + beta. With two checkpoints and beta = 0 w_last is the
  lambda in [alpha, 1] of arXiv 2403.19390, algorithm 1; beta > 0 extrapolates
  past the last checkpoint.
  """

  alpha: float = 0.0
  beta: float = 0.0

  @property
  def highest(self) -> float:
    """The largest weight of the last checkpoint."""
    return 1 + self.beta

  def problems(self) -> list[str]:
    found = []
    if not 0 <= self.alpha < 1:
      found.append(f"alpha must be in [0, 1), got {self.alpha}")
    if not 0 <= self.beta <= 1:
      found.append(f"beta must be in [0, 1], got {self.beta}")
    return found


def _check(values: Sequence[float], what: str, lowest: float) -> None:
  if not len(values):
    raise InputError(f"{what} must not be empty")
  off = abs(math.fsum(values) - 1)
  if min(values) < lowest - _TOLERANCE or off > _TOLERANCE:
    raise InputError(
      f"{what} must be >= {lowest:g} and sum to 1, got"
      f" {[float(v) for v in values]}"
    )


def _shift(count: int, bounds: Bounds) -> tuple[float, float]:
  """Returns the loss of each of the others, and s."""
  check(bounds.problems())
  lost = bounds.beta / (count - 1) if count > 1 else 0.0
  return lost, 1 - bounds.alpha + bounds.beta


def weights_from_unit(unit_K: Sequence[float], bounds: Bounds) -> list[float]:
  """Checkpoint weights of a unit point; a checkpoint alone is exactly that.

  Raises:
    InputError: impossible bounds, or `unit_K` not on the simplex.
  """
  _check(unit_K, "a unit point", 0.0)
  lost, scale = _shift(len(unit_K), bounds)
  weights = [scale * float(v) - lost for v in unit_K]
  weights[-1] += lost + bounds.alpha
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
  lost, scale = _shift(len(weights_K), bounds)
  _check(weights_K, "weights", -lost)
  if weights_K[-1] < bounds.alpha - _TOLERANCE:
    raise InputError(
      f"the last weight must be at least alpha={bounds.alpha}, got"
      f" {weights_K[-1]}"
    )
  unit = [(float(w) + lost) / scale for w in weights_K]
  unit[-1] = (float(weights_K[-1]) - bounds.alpha) / scale
  return normalised(unit)


def normalised(unit_K: Sequence[float]) -> list[float]:
  """Clips at 0 and divides by the sum: Python floats that sum to 1 +- 1e-15."""
  clipped = [max(float(v), 0.0) for v in unit_K]
  total = math.fsum(clipped)
  return [v / total for v in clipped]


def is_same(a_K: Sequence[float], b_K: Sequence[float]) -> bool:
  """Says whether two points are equal up to rounding."""
  return math.dist(a_K, b_K) <= _TOLERANCE
