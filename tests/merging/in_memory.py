"""Merges of whole trees that are in memory, to compare streamed ones with."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxmerge.config_reading import range_problems
from jaxmerge.errors import InputError, check
from jaxmerge.merging.average import check_equal_trees
from jaxmerge.merging.method import (
  METHODS,
  count_problems,
  knobs_of_inputs,
)
from jaxmerge.merging.per_tensor import merge_tensors
from jaxmerge.merging.weight_checks import weighing
from jaxmerge.parallel.rules import leaf_name


def merge_trees(
  name: str,
  trees: Sequence[Any],
  weights: Sequence[float] = (),
  *,
  base: Any = None,
  **knobs: Any,
) -> Any:
  """Merges trees by a method that acts on tensors.

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
  bases = [base] if method.base else []
  check_equal_trees([*bases, *trees])
  used, weights_K = weighing(trees, method.usable(weights, chosen))
  used_K, _ = weighing(range(len(trees)), weights)
  chosen = knobs_of_inputs(chosen, used_K)
  if len(used) == 1 and not bases:
    return used[0]

  def merge(path: Any, *leaves: Any) -> jax.Array:
    start, ends = (leaves[0], leaves[1:]) if bases else (None, leaves)
    return merge_tensors(
      method, chosen, ends, weights_K, start, name=leaf_name(path)
    )

  return jax.tree_util.tree_map_with_path(merge, *bases, *used)
