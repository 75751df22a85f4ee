"""Warm-up, a stable rate, and a decay over the last steps."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from jaxmerge.config_fields import key
from jaxmerge.training.optimizer import SCHEDULES, Schedule
from jaxmerge.training.warmup import STEPS, WarmupKnobs, rise_then, warmed_up

# The rate's share at the part p of the decay.
_SHAPES: Mapping[str, Callable[[jax.Array], jax.Array]] = {
  "linear": lambda p: 1 - p,
  "cosine": lambda p: (1 + jnp.cos(jnp.pi * p)) / 2,
  "1-sqrt": lambda p: 1 - jnp.sqrt(p),
}


@dataclasses.dataclass(frozen=True)
class Knobs(WarmupKnobs):
  decay_steps: int = key(
    100, "last steps, over which the rate falls; 0: it stays", **STEPS
  )
  decay_shape: str = key("1-sqrt", "how the rate falls", choices=_SHAPES)
  final_share: float = key(
    0.0, "the last rate's share of the highest", at_least=0, at_most=1
  )


def wsd(learning_rate: float, num_steps: int, knobs: Knobs) -> optax.Schedule:
  """WSD (arXiv 2404.06395): f + (1 - f) shape(p) of the rate in the decay.

  f is the final share, p the part of the decay's steps. The shape 1 - sqrt(p)
  is of arXiv 2405.18392.
  """
  decay_steps, floor = knobs.decay_steps, knobs.final_share
  shape = _SHAPES[knobs.decay_shape]

  def decay(steps: jax.typing.ArrayLike) -> jax.Array:
    part = jnp.clip(jnp.asarray(steps) / max(decay_steps, 1), 0, 1)
    return learning_rate * (floor + (1 - floor) * shape(part))

  stable = optax.constant_schedule(learning_rate)
  start = num_steps - decay_steps - knobs.warmup_steps
  then = optax.join_schedules([stable, decay], [start])
  return warmed_up(learning_rate, knobs, then)


def _problems(num_steps: int, knobs: Knobs) -> list[str]:
  if knobs.warmup_steps + knobs.decay_steps <= num_steps:
    return []
  return [
    f"config.optimizer.warmup_steps {knobs.warmup_steps} and "
    f"config.optimizer.decay_steps {knobs.decay_steps} are together more than "
    f"config.num_steps {num_steps}"
  ]


def _phases(num_steps: int, knobs: Knobs) -> dict[str, tuple[int, int]]:
  decay = num_steps - knobs.decay_steps
  return {
    **rise_then("stable")(decay, knobs),
    "decay": (decay + 1, num_steps),
  }


SCHEDULES.register(
  Schedule(
    "wsd",
    "warm-up, stable, decay (arXiv 2404.06395, 2405.18392)",
    Knobs,
    wsd,
    problems=_problems,
    phases=_phases,
  )
)
