"""The rise of the learning rate from zero, with which schedules begin."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from jaxmerge.config_fields import key

# As many steps as a run may have.
STEPS = {"at_least": 0, "at_most": 2**31 - 1}


@dataclasses.dataclass(frozen=True)
class WarmupKnobs:
  warmup_steps: int = key(
    100, "steps over which the rate rises from zero", **STEPS
  )


def warmed_up(
  learning_rate: float, knobs: WarmupKnobs, then: optax.Schedule
) -> optax.Schedule:
  """Rises linearly from zero, then is `then` of the steps since."""
  steps = knobs.warmup_steps
  rise = optax.linear_schedule(0.0, learning_rate, max(steps, 1))
  return optax.join_schedules([rise, then], [steps])


def rise_then(name: str) -> Callable[[int, WarmupKnobs], dict[str, Any]]:
  """The phases of a schedule that is one thing after the rise.

  A step is of a phase by the rate of its own update, which its checkpoint is
  the first to have.
  """

  def phases(num_steps: int, knobs: WarmupKnobs) -> dict[str, tuple[int, int]]:
    rise = knobs.warmup_steps
    return {"warmup": (1, rise), name: (rise + 1, num_steps)}

  return phases


def too_long(num_steps: int, knobs: WarmupKnobs) -> list[str]:
  """Says that a schedule has no step left for what comes after the rise."""
  if knobs.warmup_steps < num_steps:
    return []
  return [
    f"config.optimizer.warmup_steps {knobs.warmup_steps} must be less than "
    f"config.num_steps {num_steps}"
  ]
