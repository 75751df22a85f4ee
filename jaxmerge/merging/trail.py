"""Means of steps that a run has saved, of any of their items.

They are read one after another, so that a mean of many takes the memory of
two.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from jaxmerge.checkpoints.store import restore_item
from jaxmerge.errors import InputError
from jaxmerge.merging.average import weighted_sum
from jaxmerge.merging.weight_checks import normalise, weighing


def mean_of(
  paths: Sequence[epath.PathLike],
  item: str,
  target: Any,
  weights: Sequence[float] | None = None,
  last: Any = None,
) -> Any:
  """Averages an item of step directories, as average.weighted_average does.

  Beside the sum there is one tree at a time. Steps of weight zero are not
  read. In a job of several processes all of them call it.

  Args:
    paths: of step directories, oldest first.
    item: `params`, or what else a step has, such as `opt_state`.
    target: ShapeDtypeStructs with shardings, as the item is restored.
    weights: one for each of the K trees, which are divided by their sum; None:
      all the same.
    last: a tree like the target behind those of the paths, which stays as it
      is; None: there is none.

  Returns:
    A tree like the target: the sum in float32, then cast. Of what is not
    floating-point, such as counts, the last tree's.

  Raises:
    InputError: the weights are not usable, or a step is damaged.
  """

  def tree_of(path: epath.PathLike | None) -> Any:
    return last if path is None else restore_item(path, item, target)

  places = [*paths, *([] if last is None else [None])]
  given = [1.0] * len(places) if weights is None else weights
  if len(places) != len(given):
    raise InputError(f"{len(places)} checkpoints but {len(given)} weights")
  used, weights_U = weighing(places, normalise(given))
  tree = tree_of(used[0])
  # The sum begins with the second tree: a product that is added in the program
  # that makes it is not rounded by itself, and so it is in weighted_average.
  total, held = None, [_floats(tree)]
  for place in used[1:]:
    del tree
    tree = tree_of(place)
    held.append(_floats(tree))
    some, weights_U = weights_U[: len(held)], weights_U[len(held) :]
    total = _add(total, jnp.asarray(some, jnp.float32), held)
    held = []
  means = iter(held[0] if total is None else total)
  if used[-1] != places[-1] and not all(
    map(_is_float, jax.tree.leaves(target))
  ):
    tree = tree_of(places[-1])
  return jax.tree.map(
    lambda leaf, like: (
      next(means).astype(like.dtype) if _is_float(like) else leaf
    ),
    tree,
    target,
  )


def _is_float(leaf: Any) -> bool:
  return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _floats(tree: Any) -> list[jax.Array]:
  return [leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)]


def _sum(
  total: list[jax.Array] | None, weights_U: jax.Array, trees: Any
) -> list[jax.Array]:
  rows = zip(*trees, strict=True)
  if total is None:
    return [weighted_sum(weights_U, row) for row in rows]
  return [
    weighted_sum(weights_U, row, so_far) for row, so_far in zip(rows, total)
  ]


_add = jax.jit(_sum, donate_argnums=0)
