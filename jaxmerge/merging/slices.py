"""What is not elementwise acts on each tensor, of a stack on each layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.parallel.rules import is_stacked, leaf_name


def map_slices(
  function: Callable[..., jax.Array], *trees: Any, stacked: bool = True
) -> Any:
  """Applies a function to equal tensors of all trees, in float32.

  Args:
    function: maps one tensor of each tree to a tensor of the same shape.
    trees: pytrees of equal structure, shapes and dtypes.
    stacked: leaves named layers/... hold one tensor a layer; the function sees
      each by itself. False: every leaf is one tensor.

  Returns:
    A tree like the first, in its dtypes.
  """

  def apply(path: Any, *leaves: jax.Array) -> jax.Array:
    each = stacked and is_stacked(leaf_name(path))
    mapped = jax.vmap(function) if each else function
    result = mapped(*(leaf.astype(jnp.float32) for leaf in leaves))
    return result.astype(leaves[0].dtype)

  return jax.tree_util.tree_map_with_path(apply, *trees)
