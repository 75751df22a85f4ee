"""Warm-up, then a constant rate: the schedule under which merging pays."""

import dataclasses

import optax

from jaxmerge.config_fields import key
from jaxmerge.training.optimizer import SCHEDULES, Schedule


@dataclasses.dataclass(frozen=True)
class Knobs:
  warmup_steps: int = key(
    100,
    "steps over which the rate rises from zero",
    at_least=0,
    at_most=2**31 - 1,
  )


def warmup_constant(
  learning_rate: float, num_steps: int, knobs: Knobs
) -> optax.Schedule:
  """Rises linearly from zero over `warmup_steps`, then stays.

  Without a decay, averaging checkpoints plays the part of one (WSM, arXiv
  2507.17634).
  """
  warmup = knobs.warmup_steps
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, learning_rate, max(warmup, 1)),
      optax.constant_schedule(learning_rate),
    ],
    [warmup],
  )


SCHEDULES.register(
  Schedule(
    "warmup_constant",
    "linear from zero, then constant (WSM, arXiv 2507.17634)",
    Knobs,
    warmup_constant,
  )
)
