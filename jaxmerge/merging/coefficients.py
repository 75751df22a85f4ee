"""Weights that need no search: averages over the last K checkpoints.

K checkpoints, oldest first; every function gives K numbers that sum to 1.
"""

import functools
import math
from collections.abc import Callable, Sequence

from jaxmerge.bayesopt.reach import is_same, normalised
from jaxmerge.errors import InputError

Schedule = Callable[[float], float]

LAWA_COUNT = 3
EMA_DECAY = 0.2

# Learning-rate decays s(x) over a window, from s(0) = 1 to s(1) = 0.
SCHEDULES: dict[str, Schedule] = {
  "linear": lambda x: 1 - x,
  "1-sqrt": lambda x: 1 - math.sqrt(x),
  "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
}


def last(count: int) -> list[float]:
  """The last checkpoint alone."""
  return alone(count, count - 1)


def alone(count: int, index: int) -> list[float]:
  """One checkpoint alone."""
  return [float(k == index) for k in range(count)]


def uniform(count: int) -> list[float]:
  """Plain averaging."""
  return normalised([1.0] * count)


def lawa(count: int, newest: int = LAWA_COUNT) -> list[float]:
  """The mean of the newest few (LAWA, arXiv 2209.14981)."""
  return normalised([float(k >= count - newest) for k in range(count)])


def ema(count: int, decay: float = EMA_DECAY) -> list[float]:
  """M_i = decay theta_i + (1 - decay) M_{i-1} (PMA, arXiv 2505.12082)."""
  weights = [decay * (1 - decay) ** (count - 1 - k) for k in range(count)]
  weights[0] = (1 - decay) ** (count - 1)
  return normalised(weights)


def wma(count: int) -> list[float]:
  """w_i in proportion to i, the oldest 1 (WMA of PMA, arXiv 2505.12082)."""
  return normalised([float(k + 1) for k in range(count)])


def secant(count: int, newest: int, beyond: float) -> list[float]:
  """mean_2 + beyond (mean_2 - mean_1) of the two newest windows.

  After Extra-Merge (ICML 2026), with the difference of two window means in
  place of their leading direction.

  Args:
    count: K.
    newest: size of each window, at most half of K.
    beyond: how far past the newer mean; 0 is that mean (LAWA).

  Raises:
    InputError: two windows of that size do not fit.
  """
  if not 1 <= newest <= count // 2:
    raise InputError(
      f"two windows of {newest} do not fit into {count} checkpoints"
    )
  weights = [0.0] * (count - 2 * newest)
  weights += [-beyond / newest] * newest
  return weights + [(1 + beyond) / newest] * newest


def of_schedule(schedule: Schedule, count: int) -> list[float]:
  """What a learning-rate decay over the window would have weighed.

  WSM (arXiv 2507.17634, theorem 3.1): with d_i = s(i / K), c_i = d_i - d_{i+1}
  and the newest c = d_{K-1}. A linear decay is the uniform mean.
  """
  decay = [schedule(i / count) for i in range(count)] + [0.0]
  return normalised([decay[i] - decay[i + 1] for i in range(count)])


_ONE: dict[str, Callable[[int], list[float]]] = {
  "last": last,
  "uniform": uniform,
  "lawa": lawa,
  "ema": ema,
  "wma": wma,
}
for _name, _schedule in SCHEDULES.items():
  _ONE[_name] = functools.partial(of_schedule, _schedule)

CHECKPOINTS = "checkpoints"
STARTS = (*_ONE, CHECKPOINTS)

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
      some = [(name, _ONE[name](count))]
    for label, weights in some:
      if all(not is_same(weights, other) for _, other in found):
        found.append((label, weights))
  return found
