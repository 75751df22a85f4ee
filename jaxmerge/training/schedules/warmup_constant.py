"""Warm-up, then a constant rate: the schedule under which merging pays."""

import optax

from jaxmerge.training.optimizer import SCHEDULES, Schedule
from jaxmerge.training.warmup import WarmupKnobs, rise_then, warmed_up


def warmup_constant(
  learning_rate: float, num_steps: int, knobs: WarmupKnobs
) -> optax.Schedule:
  """Rises linearly from zero over `warmup_steps`, then stays.

  Without a decay, averaging checkpoints plays the part of one (WSM, arXiv
  2507.17634).
  """
  constant = optax.constant_schedule(learning_rate)
  return warmed_up(learning_rate, knobs, constant)


SCHEDULES.register(
  Schedule(
    "warmup_constant",
    "linear from zero, then constant (WSM, arXiv 2507.17634)",
    WarmupKnobs,
    warmup_constant,
    depends_on_length=False,
    phases=rise_then("stable"),
  )
)
