"""Weights by name that a search starts from, by the age of checkpoints.

K checkpoints, oldest first; every function gives K numbers that sum to 1.
"""

from collections.abc import Sequence

import numpy as np

from jaxmerge.merging.method import METHODS, average_weights
from jaxmerge.simplex.bounds import is_same, normalised


def uniform(count: int) -> list[float]:
  """Plain averaging."""
  return normalised([1.0] * count)


LAST = "last"
CHECKPOINTS = "checkpoints"
_METHODS = ("uniform", "lawa", "ema", "wma", "linear", "1-sqrt", "cosine")
STARTS = (LAST, *_METHODS, CHECKPOINTS)

# For starts(). A pair begins with its two ends, as arXiv 2403.19390 does. Each
# checkpoint alone teaches the process more than another mean of all of them
# (docs/results/search.md).
_DECAYS = ("uniform", "linear", "1-sqrt", "cosine")
PAIR_STARTS = (LAST, CHECKPOINTS, *_DECAYS, "lawa", "ema")
# A slope along every weight tells what each checkpoint alone would.
GRADIENT_STARTS = (LAST, "lawa", "uniform")
MORE_STARTS = (LAST, "lawa", CHECKPOINTS, *_DECAYS, "ema")


def default_starts(count: int, use_gradients: bool) -> tuple[str, ...]:
  """Names for starts(), the likeliest to help first."""
  if use_gradients:
    return GRADIENT_STARTS
  return PAIR_STARTS if count == 2 else MORE_STARTS


def starts(names: Sequence[str], count: int) -> list[tuple[str, list[float]]]:
  """Named weights without duplicates, in the order of the names.

  "checkpoints" are all alone, latest first.
  """
  some: list[tuple[str, list[float]]] = []
  alone_K = np.eye(count).tolist()
  for name in names:
    if name == CHECKPOINTS:
      some += [(f"checkpoint {k}", alone_K[k]) for k in reversed(range(count))]
    elif name == LAST:
      some.append((name, alone_K[-1]))
    else:  # a merge method with its defaults
      method = METHODS.find(name)
      weights = average_weights(method, uniform(count), method.knobs())
      some.append((name, weights))
  found: list[tuple[str, list[float]]] = []
  for label, weights in some:
    if not any(is_same(weights, other) for _, other in found):
      found.append((label, weights))
  return found
