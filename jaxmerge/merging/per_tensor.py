"""Merges equal tensors by a method's function: whole leaves, rows, whole trees.

K trees. What is not elementwise acts on each tensor, of a stack on each layer.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.config_reading import range_problems
from jaxmerge.errors import InputError, check
from jaxmerge.merging.average import check_equal_trees
from jaxmerge.merging.method import METHODS, Method, count_problems
from jaxmerge.merging.weight_checks import weighing
from jaxmerge.parallel.rules import is_stacked, leaf_name


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
    method: that acts on tensors.
    knobs: of the method.
    tensors: K arrays of one shape and dtype; none only with a base.
    weights_K: ready for use.
    base: an array like them; None for methods without.
    name: of the leaf; layers/... hold one tensor a layer.
    first_layer: number of the first layer, where the arrays hold only some.

  Returns:
    An array like them.

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
  def draw(count: int, layer: jax.Array | None) -> list[jax.Array]:
    keys = [
      jax.random.fold_in(one, name_hash) for one in jax.random.split(key, count)
    ]
    if layer is None:
      return keys
    return [jax.random.fold_in(one, layer) for one in keys]

  def merge(
    tensors: Sequence[jax.Array], base: Any, layer: jax.Array | None
  ) -> jax.Array:
    more: dict[str, Any] = {}
    if method.base:
      more["base"] = base.astype(jnp.float32)
    if method.draws:
      more["draw"] = functools.partial(draw, layer=layer)
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


def merge_trees(
  name: str,
  trees: Sequence[Any],
  weights: Sequence[float] = (),
  *,
  base: Any = None,
  **knobs: Any,
) -> Any:
  """The merged tree of a method that acts on tensors.

  Args:
    name: of the method.
    trees: K pytrees of equal structure, shapes and dtypes.
    weights: K numbers, as typed; none: equal ones.
    base: the tree that all came from, for methods that need it.
    knobs: of the method, where they are not to be its defaults.

  Raises:
    InputError: the trees differ, or weights or knobs that are not usable.
  """
  method = METHODS.find(name)
  chosen = method.knobs(**knobs)
  check([*count_problems(method, len(trees)), *range_problems(chosen, "")])
  weights = weights if len(weights) else method.equal_weights(len(trees))
  if len(trees) != len(weights):
    raise InputError(f"{len(trees)} trees but {len(weights)} weights")
  check_equal_trees([*([base] if method.base else []), *trees])
  used, weights_K = weighing(trees, method.usable(weights, chosen))
  if len(used) == 1 and not method.base:
    return used[0]

  def merge(path: Any, *leaves: Any) -> jax.Array:
    start, ends = (leaves[0], leaves[1:]) if method.base else (None, leaves)
    return merge_tensors(
      method, chosen, ends, weights_K, start, name=leaf_name(path)
    )

  every = [base, *used] if method.base else used
  return jax.tree_util.tree_map_with_path(merge, *every)
