"""The Euclidean norm of each leaf; None where an entry is NaN or Inf."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.parallel.rules import named_leaves


def norms(tree: Any) -> dict[str, float | None]:
  """By name, of leaves of floating-point numbers."""
  named = {
    name: leaf
    for name, leaf in named_leaves(tree).items()
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  }
  if not named:
    return {}
  found = np.asarray(_norms([jnp.asarray(leaf) for leaf in named.values()]))
  return {
    name: float(norm) if math.isfinite(norm) else None
    for name, norm in zip(named, found)
  }


@jax.jit
def _norms(leaves: list[jax.Array]) -> jax.Array:
  return jnp.stack([_norm(leaf) for leaf in leaves])


def _norm(leaf: jax.Array) -> jax.Array:
  """Divides entries by the largest, so that no square overflows."""
  if not leaf.size:
    return jnp.float32(0)
  entries = leaf.astype(jnp.float32)
  largest = jnp.max(jnp.abs(entries))
  scale = jnp.where(largest > 0, largest, 1.0)
  return scale * jnp.sqrt(jnp.sum(jnp.square(entries / scale)))


_part_norm = jax.jit(_norm)


def part_squares(part: np.ndarray) -> float:
  """The sum of squares of some entries; NaN where one is NaN or Inf."""
  return float(_part_norm(part)) ** 2


def all_finite(array: np.ndarray) -> bool:
  """Says whether no entry is NaN or Inf, by the bits, which is fast.

  Args:
    array: on the host, of floating-point numbers of at most 32 bits.
  """
  size = array.dtype.itemsize
  # Infinity, or what a type without it has instead: NaN. As numbers with and
  # without a sign the bits of what is finite are below it, either way.
  limit = int(np.asarray(np.inf, array.dtype).view(f"uint{8 * size}"))
  sign = 1 << (8 * size - 1)
  bits = np.ascontiguousarray(array)
  largest = bits.view(f"int{8 * size}").max(initial=0)
  most_negative = bits.view(f"uint{8 * size}").max(initial=0)
  return bool(largest < limit and most_negative < sign + limit)
