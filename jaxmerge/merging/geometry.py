"""Averages on the sphere: SLERP of two trees, the Karcher mean of more.

K trees; a tensor is a vector of its entries.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.errors import InputError
from jaxmerge.merging.average import (
  check_equal_trees,
  normalise,
  shares,
  weighing,
)
from jaxmerge.merging.slices import map_slices

# Above this cosine the arc is a line to float32.
_PARALLEL = 0.9995
_TINY = 1e-12
_KARCHER_STEPS = 50
_KARCHER_TOLERANCE = 1e-7

_State = tuple[jax.Array, jax.Array, jax.Array]


def slerp(trees: Sequence[Any], weights: Sequence[float]) -> Any:
  """[sin((1 - t) w) a + sin(t w) b] / sin w, w the angle between a and b.

  Shoemake 1985, for each tensor; nearly parallel or vanishing ones are
  averaged along the line.

  Args:
    trees: two pytrees of equal structure, shapes and dtypes.
    weights: (1 - t, t), or numbers in that proportion.

  Raises:
    InputError: not two trees, or they differ; weights that are not usable.
  """
  if len(trees) != 2 or len(weights) != 2:
    raise InputError(f"slerp takes two trees and weights, got {len(trees)}")
  check_equal_trees(trees)
  used, (*_, t) = weighing(trees, normalise(weights))
  return used[0] if len(used) == 1 else _slerp(tuple(used), jnp.float32(t))


@jax.jit
def _slerp(trees: tuple[Any, Any], t: jax.Array) -> Any:
  return map_slices(lambda a, b: _arc(a, b, t), *trees)


def _arc(a: jax.Array, b: jax.Array, t: jax.Array) -> jax.Array:
  lengths = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
  cosine = jnp.vdot(a, b) / jnp.maximum(lengths, _TINY)
  is_line = (jnp.abs(cosine) > _PARALLEL) | (lengths <= _TINY)
  # Masked before the division, so that no branch is infinite.
  angle = jnp.arccos(jnp.where(is_line, 0.0, cosine))
  sine = jnp.sin(angle)
  arc = (jnp.sin((1 - t) * angle) * a + jnp.sin(t * angle) * b) / sine
  return jnp.where(is_line, (1 - t) * a + t * b, arc)


def karcher_mean(trees: Sequence[Any], weights: Sequence[float]) -> Any:
  """Mean direction of each tensor on the sphere, with their mean length.

  Karcher 1977: m <- exp_m(sum_i w_i log_m(u_i)) over the directions u_i from
  their normalised mean on, until the step is below 1e-7; the result is
  sum_i w_i |x_i| times m.

  Args:
    trees: K pytrees of equal structure, shapes and dtypes.
    weights: K numbers >= 0; divided by their sum.

  Raises:
    InputError: the trees differ, or the weights are not usable.
  """
  check_equal_trees(trees)
  used, weights_K = weighing(trees, shares(len(trees), weights))
  if len(used) == 1:
    return used[0]
  return _karcher(tuple(used), jnp.asarray(weights_K, jnp.float32))


@jax.jit
def _karcher(trees: tuple[Any, ...], weights_K: jax.Array) -> Any:
  return map_slices(functools.partial(_mean_direction, weights_K), *trees)


def _mean_direction(weights_K: jax.Array, *tensors: jax.Array) -> jax.Array:
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
    far = jnp.linalg.norm(step_E) >= _KARCHER_TOLERANCE
    return far & (count < _KARCHER_STEPS)

  first = (jnp.asarray(0), start_E, tangent(start_E))
  _, mean_E, _ = jax.lax.while_loop(is_moving, step, first)
  return (weights_K @ lengths_K * mean_E).reshape(tensors[0].shape)
