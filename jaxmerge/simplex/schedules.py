"""Weights that a learning-rate decay over the checkpoints stands for.

K checkpoints, oldest first.
"""

import math
from collections.abc import Callable

from jaxmerge.simplex.bounds import normalised

Schedule = Callable[[float], float]

# Learning-rate decays s(x) over a window, from s(0) = 1 to s(1) = 0.
SCHEDULES: dict[str, Schedule] = {
  "linear": lambda x: 1 - x,
  "1-sqrt": lambda x: 1 - math.sqrt(x),
  "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
}


def of_schedule(schedule: Schedule, count: int) -> list[float]:
  """The weights that a learning-rate decay over the window stands for.

  WSM (arXiv 2507.17634, theorem 3.1): with d_i = s(i / K), c_i = d_i - d_{i+1}
  and the newest c = d_{K-1}. A linear decay is the uniform mean.
  """
  decay = [schedule(i / count) for i in range(count)] + [0.0]
  return normalised([decay[i] - decay[i + 1] for i in range(count)])
