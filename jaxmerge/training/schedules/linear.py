"""Warm-up, then a line down to the last step."""

import dataclasses

import optax

from jaxmerge.config_fields import key
from jaxmerge.training.optimizer import SCHEDULES, Schedule
from jaxmerge.training.warmup import WarmupKnobs, rise_then, too_long, warmed_up


@dataclasses.dataclass(frozen=True)
class Knobs(WarmupKnobs):
  final_share: float = key(
    0.0, "the last rate's share of the highest", at_least=0, at_most=1
  )


def linear(
  learning_rate: float, num_steps: int, knobs: Knobs
) -> optax.Schedule:
  """1 - (1 - f) p of the highest rate (arXiv 2310.07831).

  f is the final share, p the part of the steps after the warm-up.
  """
  decay = optax.linear_schedule(
    learning_rate,
    learning_rate * knobs.final_share,
    num_steps - knobs.warmup_steps,
  )
  return warmed_up(learning_rate, knobs, decay)


SCHEDULES.register(
  Schedule(
    "linear",
    "linear from zero, then linear down (arXiv 2310.07831)",
    Knobs,
    linear,
    problems=too_long,
    phases=rise_then("decay"),
  )
)
