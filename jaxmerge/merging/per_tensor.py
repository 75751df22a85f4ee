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
import numpy as np

from jaxmerge.errors import InputError
from jaxmerge.merging.method import Method, of_input
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
  # Another name, base, seed or number of these is no other program.
  numbers = {knob: getattr(knobs, knob) for knob in _NUMBERS & {*method.uses}}
  seed = knobs.seed if method.prepare else 0
  other: dict[str, Any] = {"base": ""} if method.base else {}
  other |= {"seed": 0} if method.prepare else {}
  knobs = dataclasses.replace(knobs, **dict.fromkeys(numbers, 0.0), **other)
  by_layer = is_stacked(name) and method.whole
  if method.prepare:
    name_hash = np.uint32(zlib.crc32(name.encode()))
    tensors = [
      _prepare(
        (method, knobs, by_layer),
        tensor,
        base,
        key,
        name_hash,
        first_layer,
        {name: of_input(value, k) for name, value in numbers.items()},
      )
      for k, (key, tensor) in enumerate(zip(_keys(seed, len(tensors)), tensors))
    ]
  return _merge(
    (method, knobs, by_layer),
    tuple(tensors),
    np.asarray(weights_K, np.float32),
    base,
    numbers,
  )


# Knobs that a program is given; the others are compiled into it.
_NUMBERS = {"scale", "drop_rate"}
_Which = tuple[Method, Any, bool]


@functools.cache
def _keys(seed: int, count: int) -> list[jax.Array]:
  return list(jax.random.split(jax.random.key(seed), count))


@functools.partial(jax.jit, static_argnums=0)
def _prepare(
  which: _Which,
  tensor: jax.Array,
  base: jax.Array,
  key: jax.Array,
  name_hash: jax.Array,
  first_layer: jax.Array,
  numbers: dict[str, jax.Array],
) -> jax.Array:
  method, knobs, by_layer = which
  knobs = dataclasses.replace(knobs, **numbers)
  key = jax.random.fold_in(key, name_hash)
  tensor, base = tensor.astype(jnp.float32), base.astype(jnp.float32)
  assert method.prepare is not None
  if not by_layer:
    return method.prepare(tensor, key, knobs, base)

  def prepare(tensor: jax.Array, base: jax.Array, layer: jax.Array) -> Any:
    own = jax.random.fold_in(key, layer)
    return method.prepare(tensor, own, knobs, base)  # type: ignore[misc]

  layers = first_layer + jnp.arange(base.shape[0])
  return jax.vmap(prepare)(tensor, base, layers)


@functools.partial(jax.jit, static_argnums=0)
def _merge(
  which: _Which,
  tensors: tuple[jax.Array, ...],
  weights_K: jax.Array,
  base: Any,
  numbers: dict[str, jax.Array],
) -> jax.Array:
  method, knobs, by_layer = which
  knobs = dataclasses.replace(knobs, **numbers)

  def merge(tensors: Sequence[jax.Array], base: Any) -> jax.Array:
    wide = [tensor.astype(jnp.float32) for tensor in tensors]
    if not method.base:
      return method.function(wide, weights_K, knobs)
    start = base.astype(jnp.float32)
    return method.function(wide, weights_K, knobs, start)

  like = base if method.base else tensors[0]
  merged = (jax.vmap(merge) if by_layer else merge)(tensors, base)
  if merged.shape != like.shape:
    raise InputError(
      f"the method {method.name!r} makes {merged.shape} of {like.shape}"
    )
  return merged.astype(like.dtype)
