"""Warm-up, then the inverse square root of the step."""

import jax
import jax.numpy as jnp
import optax

from jaxmerge.training.optimizer import SCHEDULES, Schedule
from jaxmerge.training.warmup import WarmupKnobs, rise_then, warmed_up


def inverse_sqrt(
  learning_rate: float, num_steps: int, knobs: WarmupKnobs
) -> optax.Schedule:
  """sqrt(w / step) of the highest rate, w the warm-up (arXiv 1706.03762)."""
  warmup = max(knobs.warmup_steps, 1)

  def decay(steps: jax.typing.ArrayLike) -> jax.Array:
    # Before the warm-up's end it is computed too, of fewer than no steps.
    return learning_rate * jnp.sqrt(warmup / (warmup + jnp.maximum(steps, 0)))

  return warmed_up(learning_rate, knobs, decay)


SCHEDULES.register(
  Schedule(
    "inverse_sqrt",
    "linear from zero, then as 1 / sqrt(step) (arXiv 1706.03762)",
    WarmupKnobs,
    inverse_sqrt,
    depends_on_length=False,
    phases=rise_then("decay"),
  )
)
