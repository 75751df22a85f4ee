"""Averages whose weights go by the age of the inputs, oldest first."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxmerge.config_fields import key
from jaxmerge.errors import InputError
from jaxmerge.merging.method import merge_method
from jaxmerge.simplex.bounds import normalised
from jaxmerge.simplex.schedules import SCHEDULES, of_schedule


@dataclasses.dataclass(frozen=True)
class WindowKnobs:
  window: int = key(3, "inputs that are averaged", at_least=1)


@merge_method(
  "lawa",
  "the mean of the `window` newest (LAWA, arXiv 2209.14981; SMA of PMA, arXiv"
  " 2505.12082)",
  acts="on weights",
  knobs=WindowKnobs,
  ordered=True,
)
def lawa(weights_K: Sequence[float], knobs: WindowKnobs) -> list[float]:
  count = len(weights_K)
  return normalised([float(k >= count - knobs.window) for k in range(count)])


@merge_method(
  "wma",
  "weights 1, 2, ..., K (PMA, arXiv 2505.12082)",
  acts="on weights",
  ordered=True,
)
def wma(weights_K: Sequence[float], knobs: Any) -> list[float]:
  return normalised([float(k + 1) for k in range(len(weights_K))])


@dataclasses.dataclass(frozen=True)
class EmaKnobs:
  decay: float = key(0.2, "weight of the newest", above=0, at_most=1)


@merge_method(
  "ema",
  "a moving average with `decay` (PMA, arXiv 2505.12082)",
  acts="on weights",
  knobs=EmaKnobs,
  ordered=True,
)
def ema(weights_K: Sequence[float], knobs: EmaKnobs) -> list[float]:
  """M_i = decay theta_i + (1 - decay) M_{i-1}."""
  decay, count = knobs.decay, len(weights_K)
  weights = [decay * (1 - decay) ** (count - 1 - k) for k in range(count)]
  weights[0] = (1 - decay) ** (count - 1)
  return normalised(weights)


@dataclasses.dataclass(frozen=True)
class SecantKnobs(WindowKnobs):
  extrapolation: float = key(0.5, "how far past the newer mean")


@merge_method(
  "secant",
  "past the newer of two windows, away from the older: mean_2 +"
  " `extrapolation` (mean_2 - mean_1)",
  acts="on weights",
  knobs=SecantKnobs,
  ordered=True,
)
def secant(weights_K: Sequence[float], knobs: SecantKnobs) -> list[float]:
  """After Extra-Merge (ICML 2026), with the difference of two window means in
  place of their leading direction.

  Raises:
    InputError: two windows of that size do not fit.
  """
  count, window, beyond = len(weights_K), knobs.window, knobs.extrapolation
  if not 1 <= window <= count // 2:
    raise InputError(
      f"two windows of {window} do not fit into {count} checkpoints"
    )
  weights = [0.0] * (count - 2 * window)
  weights += [-beyond / window] * window
  return weights + [(1 + beyond) / window] * window


def _register_schedule(name: str) -> None:
  @merge_method(
    name,
    f"what a {name} learning-rate decay over the inputs would have weighed"
    " (WSM, arXiv 2507.17634)",
    acts="on weights",
    ordered=True,
  )
  def decayed(weights_K: Sequence[float], knobs: Any) -> list[float]:
    return of_schedule(SCHEDULES[name], len(weights_K))


for _name in SCHEDULES:
  _register_schedule(_name)
