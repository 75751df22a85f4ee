"""Merges K equal tensors by a method's function: whole leaves, or rows.

What is not elementwise acts on each tensor, of a stack on each layer.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.errors import InputError
from jaxmerge.merging.method import Method
from jaxmerge.parallel.rules import is_stacked


def merge_tensors(
  method: Method,
  knobs: Any,
  tensors: Sequence[Any],
  weights_K: Sequence[float],
  base: Any,
  *,
  name: str,
  first_layer: int = 0,
) -> jax.Array:
  """Merges a leaf of that name, or some of its rows.

  Args:
    method, knobs: that act on tensors.
    tensors: K arrays of one shape and dtype; none only with a base.
    weights_K: ready for use.
    base: an array like them; None for methods without.
    name: of the leaf; layers/... hold one tensor a layer.
    first_layer: number of the first layer, where the arrays hold only some.

  Raises:
    InputError: the method's function gives another shape.
  """
  key = None
  if method.draws:  # another seed is no other program
    key = jax.random.key(knobs.seed)
    knobs = dataclasses.replace(knobs, seed=0)
  return _merge(
    method,
    knobs,
    is_stacked(name) and method.whole,
    tuple(tensors),
    jnp.asarray(weights_K, jnp.float32),
    base,
    key,
    jnp.uint32(zlib.crc32(name.encode())),
    first_layer,
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _merge(
  method: Method,
  knobs: Any,
  by_layer: bool,
  tensors: tuple[jax.Array, ...],
  weights_K: jax.Array,
  base: Any,
  key: Any,
  name_hash: jax.Array,
  first_layer: jax.Array,
) -> jax.Array:
  def merge(
    tensors: Sequence[jax.Array], base: Any, layer: jax.Array | None
  ) -> jax.Array:
    def draw(count: int) -> list[jax.Array]:
      folded = [name_hash] if layer is None else [name_hash, layer]
      keys = jax.random.split(key, count)
      return [functools.reduce(jax.random.fold_in, folded, k) for k in keys]

    more: dict[str, Any] = {}
    if method.base:
      more["base"] = base.astype(jnp.float32)
    if method.draws:
      more["draw"] = draw
    wide = [tensor.astype(jnp.float32) for tensor in tensors]
    return method.function(wide, weights_K, knobs, **more)

  like = base if method.base else tensors[0]
  if by_layer:
    layers = first_layer + jnp.arange(like.shape[0])
    merged = jax.vmap(merge)(tensors, base, layers)
  else:
    merged = merge(tensors, base, None)
  if merged.shape != like.shape:
    raise InputError(
      f"the method {method.name!r} makes {merged.shape} of {like.shape}"
    )
  return merged.astype(like.dtype)
