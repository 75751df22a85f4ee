"""Merges of task vectors tau_i = theta_i - theta_0 over a common base.

K trees.
"""

import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.errors import InputError
from jaxmerge.merging.average import (
  check_equal_trees,
  check_finite,
  shares,
  weighing,
)
from jaxmerge.merging.slices import map_slices
from jaxmerge.parallel.rules import is_stacked, leaf_name


def _used(
  base: Any, trees: Sequence[Any], weights: Sequence[float]
) -> tuple[list[Any], jax.Array]:
  """What weighs anything, with its weights, after checking both."""
  check_equal_trees([base, *trees])
  if len(weights) != len(trees):
    raise InputError(f"{len(trees)} trees but {len(weights)} weights")
  check_finite(weights)
  used, kept = weighing(trees, weights)
  return used, jnp.asarray(kept, jnp.float32)


def task_arithmetic(
  base: Any, trees: Sequence[Any], weights: Sequence[float]
) -> Any:
  """theta_0 + sum_i w_i tau_i (Ilharco et al., arXiv 2212.04089).

  With base C, trees A and B and weights 1 it is the residual A + B - C.

  Args:
    base: theta_0.
    trees: K pytrees of the base's structure, shapes and dtypes.
    weights: K numbers, not normalised.

  Raises:
    InputError: the trees differ, or the weights are not usable.
  """
  used, weights_K = _used(base, trees, weights)
  return _task_arithmetic(base, tuple(used), weights_K)


@jax.jit
def _task_arithmetic(
  base: Any, trees: tuple[Any, ...], weights_K: jax.Array
) -> Any:
  def add(start: jax.Array, *ends: jax.Array) -> jax.Array:
    steps = (w * (end - start) for w, end in zip(weights_K, ends))
    return functools.reduce(jnp.add, steps, start)

  return map_slices(add, base, *trees, stacked=False)


def ties(
  base: Any,
  trees: Sequence[Any],
  weights: Sequence[float],
  *,
  density: float,
  scale: float,
) -> Any:
  """Trim, elect signs, merge what agrees (Yadav et al., arXiv 2306.01708).

  For each tensor: keep the share `density` of largest |tau_i|; the sign of an
  entry is that of sum_i w_i tau_i over what is kept; theta_0 + scale times the
  weighted mean of the kept entries of that sign.

  Args:
    base: theta_0.
    trees: K pytrees of the base's structure, shapes and dtypes.
    weights: K numbers >= 0; only their proportions matter.
    density: share of each task vector that is kept, in (0, 1].
    scale: lambda, of the merged task vector.

  Raises:
    InputError: the trees differ, or a number is not usable.
  """
  if not 0 < density <= 1:
    raise InputError(f"density must be in (0, 1], got {density}")
  used, weights_K = _used(base, trees, shares(len(trees), weights))
  return _ties(base, tuple(used), weights_K, density, jnp.float32(scale))


@functools.partial(jax.jit, static_argnames="density")
def _ties(
  base: Any,
  trees: tuple[Any, ...],
  weights_K: jax.Array,
  density: float,
  scale: jax.Array,
) -> Any:
  def merge(start: jax.Array, *ends: jax.Array) -> jax.Array:
    taus = jnp.stack([_trimmed(end - start, density) for end in ends])
    return start + scale * _agreed(taus, weights_K)

  return map_slices(merge, base, *trees)


def _trimmed(tau: jax.Array, density: float) -> jax.Array:
  """The entries of largest magnitude, the others zero; ties are kept."""
  if not tau.size:
    return tau
  kept = max(math.ceil(density * tau.size), 1)
  magnitude = jnp.abs(tau)
  threshold = jnp.sort(magnitude.ravel())[tau.size - kept]
  return jnp.where(magnitude >= threshold, tau, 0.0)


def _agreed(taus: jax.Array, weights_K: jax.Array) -> jax.Array:
  """Weighted mean of the entries that have the elected sign."""
  weight = weights_K.reshape(-1, *[1] * (taus.ndim - 1))
  elected = jnp.sign(jnp.sum(weight * taus, axis=0))
  agrees = (jnp.sign(taus) == elected) & (taus != 0)
  total = jnp.sum(jnp.where(agrees, weight * taus, 0.0), axis=0)
  count = jnp.sum(jnp.where(agrees, weight, 0.0), axis=0)
  return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0)


def dropped(
  base: Any,
  trees: Sequence[Any],
  *,
  drop: float,
  seed: int,
  first_layer: int = 0,
) -> list[Any]:
  """Trees whose task vectors lost entries at random (DARE, arXiv 2311.03099).

  Each entry of tau_i is dropped with probability `drop`, the others are
  divided by 1 - drop: the mean stays. Merge them by task_arithmetic or ties.

  Args:
    base: theta_0.
    trees: K pytrees of the base's structure, shapes and dtypes.
    drop: in [0, 1).
    seed: of the draws, one for each tree, parameter name and layer.
    first_layer: number of the first layer of the stacked leaves.

  Raises:
    InputError: the trees differ, or `drop` is out of range.
  """
  if not 0 <= drop < 1:
    raise InputError(f"drop must be in [0, 1), got {drop}")
  check_equal_trees([base, *trees])
  keys = jax.random.split(jax.random.key(seed), len(trees))
  return [
    _drop(base, tree, key, drop, first_layer) for tree, key in zip(trees, keys)
  ]


@jax.jit
def _drop(
  base: Any, tree: Any, key: jax.Array, drop: float, first_layer: jax.Array
) -> Any:
  def thin(path: Any, start: jax.Array, end: jax.Array) -> jax.Array:
    name = leaf_name(path)
    own = jax.random.fold_in(key, zlib.crc32(name.encode()))

    def draw(layer: jax.Array) -> jax.Array:
      one = jax.random.fold_in(own, layer)
      return jax.random.bernoulli(one, 1 - drop, start.shape[1:])

    if is_stacked(name):
      stays = jax.vmap(draw)(first_layer + jnp.arange(start.shape[0]))
    else:
      stays = jax.random.bernoulli(own, 1 - drop, start.shape)
    tau = end.astype(jnp.float32) - start.astype(jnp.float32)
    kept = start + jnp.where(stays, tau / (1 - drop), 0.0)
    return kept.astype(start.dtype)

  return jax.tree_util.tree_map_with_path(thin, base, tree)
