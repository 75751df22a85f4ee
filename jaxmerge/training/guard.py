"""A guard around an optimiser: steps that would spoil a run are not taken."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# The running mean of gradient norms forgets with this rate a step, and is
# believed after so many steps.
_RATE, _SETTLED = 0.01, 100


class GuardState(NamedTuple):
  """The optimiser's state, and counts of steps that were not taken.

  Attributes:
    inner: of the guarded optimiser.
    taken, skipped: steps so far (int32[]).
    in_a_row: of the skipped, those since the last that was taken.
    mean_norm: running mean of the gradients' norms of steps that were taken.
  """

  inner: Any
  taken: jax.Array
  skipped: jax.Array
  in_a_row: jax.Array
  mean_norm: jax.Array


def guarded(
  optimizer: optax.GradientTransformation, spike: float
) -> optax.GradientTransformation:
  """Skips steps whose gradient is not finite, or is a spike.

  A skipped step changes neither parameters nor the optimiser's state.

  Args:
    spike: a spike is a gradient whose global norm is more than so many times
      the running mean of the norms; 0: none is.
  """

  def init(params: Any) -> GuardState:
    counts = jnp.zeros([], jnp.int32)
    zero = jnp.zeros([], jnp.float32)
    return GuardState(optimizer.init(params), counts, counts, counts, zero)

  def update(
    grads: Any, state: GuardState, params: Any = None
  ) -> tuple[Any, GuardState]:
    norm = optax.global_norm(grads)
    is_bad = ~jnp.isfinite(norm)
    if spike:
      settled = state.taken >= _SETTLED
      is_bad |= settled & (norm > spike * state.mean_norm)
    updates, inner = optimizer.update(grads, state.inner, params)
    updates = jax.tree.map(lambda u: jnp.where(is_bad, 0, u), updates)
    inner = jax.tree.map(
      lambda old, new: jnp.where(is_bad, old, new), state.inner, inner
    )
    # The plain mean until the rate is as slow.
    rate = jnp.maximum(_RATE, 1 / (state.taken + 1))
    mean = state.mean_norm + rate * (norm - state.mean_norm)
    bad = is_bad.astype(jnp.int32)
    return updates, GuardState(
      inner,
      taken=state.taken + 1 - bad,
      skipped=state.skipped + bad,
      in_a_row=(state.in_a_row + 1) * bad,
      mean_norm=jnp.where(is_bad, state.mean_norm, mean),
    )

  return optax.GradientTransformation(init, update)
