"""The optimiser's state on the mesh: its place, and the memory it takes.

Derived from names and shapes alone, so that it holds for any optimiser, also
one whose state is of some parameters only, or of their rows and columns.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmerge.parallel.rules import leaf_name, named_leaves, replicated


def state_shardings(state: Any, params: Any, mesh: Mesh) -> Any:
  """A NamedSharding for each leaf of an optimiser's state.

  A leaf belongs to the parameter whose name its own ends with. It lies as the
  parameter where it has its shape; where it lacks one of its axes, as the
  parameter without that axis; every other leaf is replicated.

  Args:
    state: of arrays or shapes.
    params: shapes with NamedShardings, of the same mesh.
  """
  by_name = named_leaves(params)

  def sharding(path: Sequence[Any], leaf: Any) -> NamedSharding:
    name = leaf_name(path)
    owners = [n for n in by_name if f"/{name}".endswith(f"/{n}")]
    if not owners:
      return replicated(mesh)
    owner = by_name[max(owners, key=len)]
    spec = _spec(leaf.shape, owner.shape, owner.sharding.spec)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, state)


def _spec(
  shape: Sequence[int], owner: Sequence[int], spec: PartitionSpec
) -> PartitionSpec:
  """The spec of a leaf, from the shape and the spec of its parameter.

  Where two axes of a parameter are alike either may be the one that a leaf
  lacks: any choice gives the same numbers.
  """
  whole = (*spec, *(None,) * (len(owner) - len(spec)))
  if tuple(shape) == tuple(owner):
    return spec
  for axis in reversed(range(len(owner))):
    if tuple(shape) == (*owner[:axis], *owner[axis + 1 :]):
      return PartitionSpec(*whole[:axis], *whole[axis + 1 :])
  return PartitionSpec()


class Bytes(NamedTuple):
  """The size of a tree, on each device and in all."""

  on_device: int
  in_total: int


def bytes_of(tree: Any) -> Bytes:
  """Adds up arrays, or shapes that have shardings."""
  leaves = jax.tree.leaves(tree)

  def total(shapes: Sequence[Sequence[int]]) -> int:
    return sum(
      math.prod(shape) * leaf.dtype.itemsize
      for shape, leaf in zip(shapes, leaves, strict=True)
    )

  return Bytes(
    on_device=total([x.sharding.shard_shape(x.shape) for x in leaves]),
    in_total=total([x.shape for x in leaves]),
  )
