"""Weights by name that a search starts from, by the age of checkpoints.

K checkpoints, oldest first; every function gives K numbers that sum to 1.
"""

from collections.abc import Sequence

from jaxmerge.errors import InputError
from jaxmerge.merging.method import METHODS, average_weights
from jaxmerge.simplex.bounds import is_same, normalised


def last(count: int) -> list[float]:
  """The last checkpoint alone."""
  return alone(count, count - 1)


def alone(count: int, index: int) -> list[float]:
  """One checkpoint alone."""
  return [float(k == index) for k in range(count)]


def uniform(count: int) -> list[float]:
  """Plain averaging."""
  return normalised([1.0] * count)


def named(name: str, count: int) -> list[float]:
  """The weights of a merge method that acts on weights, with its defaults."""
  method = METHODS.find(name)
  return average_weights(method, uniform(count), method.knobs())


LAST = "last"
CHECKPOINTS = "checkpoints"
# Those between are merge methods.
STARTS = (
  LAST,
  "uniform",
  "lawa",
  "ema",
  "wma",
  "linear",
  "1-sqrt",
  "cosine",
  CHECKPOINTS,
)

# For starts(). A pair begins with its two ends, as arXiv 2403.19390 does. Each
# checkpoint alone teaches the process more than another mean of all of them
# (docs/results/search.md).
PAIR_STARTS = (
  "last",
  CHECKPOINTS,
  "uniform",
  "linear",
  "1-sqrt",
  "cosine",
  "lawa",
  "ema",
)
# A slope along every weight tells what each checkpoint alone would.
GRADIENT_STARTS = ("last", "lawa", "uniform")
MORE_STARTS = ("last", "lawa", *PAIR_STARTS[1:6], "ema")


def default_starts(count: int, use_gradients: bool) -> tuple[str, ...]:
  """Names for starts(), the likeliest to help first."""
  if use_gradients:
    return GRADIENT_STARTS
  return PAIR_STARTS if count == 2 else MORE_STARTS


def starts(names: Sequence[str], count: int) -> list[tuple[str, list[float]]]:
  """Named weights without duplicates, in the order of the names.

  Args:
    names: of STARTS; "checkpoints" are all alone, latest first.
    count: K.

  Raises:
    InputError: an unknown name.
  """
  unknown = [name for name in names if name not in STARTS]
  if unknown:
    raise InputError(f"unknown starts {unknown}; known are {', '.join(STARTS)}")
  found: list[tuple[str, list[float]]] = []
  for name in names:
    if name == CHECKPOINTS:
      some = [
        (f"checkpoint {k}", alone(count, k)) for k in reversed(range(count))
      ]
    else:
      some = [(name, last(count) if name == LAST else named(name, count))]
    for label, weights in some:
      if all(not is_same(weights, other) for _, other in found):
        found.append((label, weights))
  return found
