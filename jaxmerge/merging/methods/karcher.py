"""The Karcher mean on the sphere; a tensor is a vector of its entries (E)."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.merging.method import Tensors, merge_method

_TINY = 1e-12
_STEPS = 50
_TOLERANCE = 1e-7

_State = tuple[jax.Array, jax.Array, jax.Array]


@merge_method(
  "karcher",
  "the mean direction on the sphere, with the mean length (Karcher 1977)",
  acts="per tensor",
  weights="optional",
  weights_are="shares",
)
def karcher_mean(
  tensors: Tensors, weights_K: jax.Array, knobs: Any
) -> jax.Array:
  """Mean direction on the sphere, with the tensors' mean length.

  Karcher 1977: m <- exp_m(sum_i w_i log_m(u_i)) over the directions u_i from
  their normalised mean on, until the step is below 1e-7; the result is
  sum_i w_i |x_i| times m.
  """
  points_KxE = jnp.stack([tensor.ravel() for tensor in tensors])
  lengths_K = jnp.linalg.norm(points_KxE, axis=1)
  units_KxE = points_KxE / jnp.maximum(lengths_K, _TINY)[:, None]
  start_E = weights_K @ units_KxE
  start_E = start_E / jnp.maximum(jnp.linalg.norm(start_E), _TINY)

  def tangent(mean_E: jax.Array) -> jax.Array:
    cosine_K = jnp.clip(units_KxE @ mean_E, -1, 1)
    angle_K = jnp.arccos(cosine_K)
    sine_K = jnp.sin(angle_K)
    near_K = sine_K < 1e-6
    # angle / sin(angle) -> 1; masked before the division.
    ratio_K = jnp.where(near_K, 1.0, angle_K / jnp.where(near_K, 1.0, sine_K))
    logs_KxE = ratio_K[:, None] * (units_KxE - cosine_K[:, None] * mean_E)
    return weights_K @ logs_KxE

  def step(state: _State) -> _State:
    count, mean_E, step_E = state
    length = jnp.linalg.norm(step_E)
    direction_E = step_E / jnp.maximum(length, _TINY)
    mean_E = jnp.cos(length) * mean_E + jnp.sin(length) * direction_E
    mean_E = mean_E / jnp.maximum(jnp.linalg.norm(mean_E), _TINY)
    return count + 1, mean_E, tangent(mean_E)

  def is_moving(state: _State) -> jax.Array:
    count, _, step_E = state
    far = jnp.linalg.norm(step_E) >= _TOLERANCE
    return far & (count < _STEPS)

  first = (jnp.asarray(0), start_E, tangent(start_E))
  _, mean_E, _ = jax.lax.while_loop(is_moving, step, first)
  return (weights_K @ lengths_K * mean_E).reshape(tensors[0].shape)
