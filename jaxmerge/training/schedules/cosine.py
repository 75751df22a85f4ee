"""Warm-up, then half a cosine down to the last step."""

import dataclasses

import optax

from jaxmerge.config_fields import key
from jaxmerge.training.optimizer import SCHEDULES, Schedule
from jaxmerge.training.warmup import WarmupKnobs, rise_then, too_long, warmed_up


@dataclasses.dataclass(frozen=True)
class Knobs(WarmupKnobs):
  final_share: float = key(
    0.1, "the last rate's share of the highest", at_least=0, at_most=1
  )


def cosine(
  learning_rate: float, num_steps: int, knobs: Knobs
) -> optax.Schedule:
  """f + (1 - f) (1 + cos(pi p)) / 2 of the highest rate (arXiv 1608.03983).

  f is the final share, p the part of the steps after the warm-up.
  """
  decay = optax.cosine_decay_schedule(
    learning_rate, num_steps - knobs.warmup_steps, alpha=knobs.final_share
  )
  return warmed_up(learning_rate, knobs, decay)


SCHEDULES.register(
  Schedule(
    "cosine",
    "linear from zero, then half a cosine (arXiv 1608.03983)",
    Knobs,
    cosine,
    problems=too_long,
    phases=rise_then("decay"),
  )
)
