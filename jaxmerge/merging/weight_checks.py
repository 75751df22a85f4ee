"""Checks of the weights of a merge, and their division by their sum."""

import math
from collections.abc import Sequence
from typing import Any

from jaxmerge.errors import InputError, check


def normalise(weights_K: Sequence[float]) -> tuple[float, ...]:
  """Weights divided by their sum, in float64 on the host.

  Negative weights are allowed (extrapolation); the sum must be positive.

  Raises:
    InputError: there are none, one is not finite, the sum is not positive, or
      they are so large against it that the sum of the trees loses its digits.
  """
  values = [float(w) for w in weights_K]
  if not values:
    raise InputError("there are no weights")
  _check_finite(values)
  # Of the largest, so that no sum leaves the range.
  largest = max(map(abs, values)) or 1.0
  parts = [w / largest for w in values]
  total = math.fsum(parts)
  found = tuple(part / total for part in parts) if total > 0 else ()
  if not found or not all(map(math.isfinite, found)):
    raise InputError(
      f"weights {values} sum to {total * largest}, not above zero"
    )
  _check_cancellation(found, f"weights {values}, divided by their sum,")
  return found


# Each term of a float32 sum is rounded in its own size: a tree averaged with
# itself comes back with an error of up to sum |w| 2^-23 of its values.
_LARGEST_WEIGHTS = 100.0


def _check_finite(weights_K: Sequence[float]) -> None:
  check(f"weight {w} is not finite" for w in weights_K if not math.isfinite(w))


def _check_cancellation(weights_K: Sequence[float], called: str) -> None:
  size = math.fsum(map(abs, weights_K))
  if size > _LARGEST_WEIGHTS:
    raise InputError(
      f"{called} have sizes of {size:.3g} in all: terms so large cancel and "
      f"leave rounding errors; at most {_LARGEST_WEIGHTS:g}"
    )


def task_weights(weights_K: Sequence[float], scale: float) -> list[float]:
  """Factors of task vectors: the weights times a scale.

  Raises:
    InputError: one is not finite, or they are too large together.
  """
  scaled = [scale * float(w) for w in weights_K]
  _check_finite(scaled)
  _check_cancellation(scaled, f"weights {list(weights_K)} times the scale")
  return scaled


def shares(weights_K: Sequence[float]) -> tuple[float, ...]:
  """Normalises weights; InputError also where one is below zero."""
  found = normalise(weights_K)
  if min(found) < 0:
    raise InputError(
      f"the method takes a weight >= 0 for each of {len(found)} trees, got"
      f" {list(weights_K)}"
    )
  return found


def weighing(
  trees: Sequence[Any], weights_K: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
  """The trees that weigh anything, in any group, and their weights.

  So Inf and NaN of the others do not spread.
  """
  both = zip(trees, weights_K, strict=True)
  used = [
    (tree, weight)
    for tree, weight in both
    if (any(weight) if isinstance(weight, tuple) else weight)
  ]
  return [tree for tree, _ in used], [weight for _, weight in used]
