"""A digest per leaf, computed where the leaf lives.

Orbax restores a flipped bit in silence. The digest is a sum, modulo 2**32, of
a mixed word per element; integer addition is associative, so the same leaf has
the same digest on any mesh, without gathering it. Each element's term is a
bijection of its bits (the finaliser of MurmurHash3), so a change of one element
always changes the sum; two independent lanes leave 2**-64 for other damage.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.parallel.rules import named_leaves

_LANES = (0x9E3779B9, 0x7F4A7C15)


def _mix(x: jax.Array) -> jax.Array:
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _words(leaf: jax.Array) -> jax.Array:
  """The bits of each element as uint32; wider elements gain a last axis."""
  size = leaf.dtype.itemsize
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  if size >= 4:
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
  narrow = {1: jnp.uint8, 2: jnp.uint16}[size]
  return jax.lax.bitcast_convert_type(leaf, narrow).astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
  """The row-major index of each element modulo 2**32."""
  index = jnp.zeros(shape, jnp.uint32)
  for axis in range(len(shape)):
    stride = math.prod(shape[axis + 1 :]) % 2**32
    along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    index = index + along * jnp.uint32(stride)
  return index


def _sums(words: jax.Array, index: jax.Array, count: Any = None) -> jax.Array:
  """Both lanes of words at these places; those from `count` on are padding."""
  kept = True if count is None else jax.lax.iota(jnp.uint32, words.size) < count
  terms = (_mix(words ^ _mix(index + jnp.uint32(seed))) for seed in _LANES)
  return jnp.stack(
    [jnp.sum(jnp.where(kept, term, 0), dtype=jnp.uint32) for term in terms]
  )


@jax.jit
def _digests(leaves: list[jax.Array]) -> jax.Array:
  words = map(_words, leaves)
  return jnp.stack([_sums(word, _positions(word.shape)) for word in words])


@jax.jit
def _part_lanes(
  part: jax.Array, first: jax.Array, count: jax.Array
) -> jax.Array:
  words = _words(part)
  return _sums(words, jax.lax.iota(jnp.uint32, words.size) + first, count)


def part_lanes(part: np.ndarray, first: int, count: int) -> tuple[int, int]:
  """The part of a leaf's digest that some elements add, see `hexadecimal`.

  Args:
    part: one axis, elements of at most 32 bits.
    first: row-major index of the first one in the leaf.
    count: how many of them; the rest of `part` is padding.
  """
  a, b = np.asarray(
    _part_lanes(part, np.uint32(first % 2**32), np.uint32(count))
  )
  return int(a), int(b)


def hexadecimal(lanes: tuple[int, int]) -> str:
  """The digest from the sums of all parts of a leaf."""
  return "".join(f"{lane % 2**32:08x}" for lane in lanes)


def digests(tree: Any) -> dict[str, str]:
  """16 hexadecimal digits per leaf of a tree of arrays, by leaf name."""
  named = named_leaves(tree)
  if not named:
    return {}
  lanes = np.asarray(_digests([jnp.asarray(leaf) for leaf in named.values()]))
  return {
    name: hexadecimal((int(a), int(b))) for name, (a, b) in zip(named, lanes)
  }
