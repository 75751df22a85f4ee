"""Sharding by an ordered table of rules over parameter names.

The first pattern that matches a name decides; a name without a rule is an
error, so that a new parameter is never replicated by accident.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmerge.errors import InputError, check

P = PartitionSpec

# Stacked layers lead with the layer axis, which is never sharded.
DECODER_RULES: Sequence[tuple[str, PartitionSpec]] = (
  (r"embed/embedding", P("tensor", "fsdp")),
  (r"layers/.*norm/(scale|bias)", P(None, None)),
  (
    r"layers/(attention/(query|key|value)|mlp/(gate|up))/kernel",
    P(None, "fsdp", "tensor"),
  ),
  (r"layers/(attention/out|mlp/down)/kernel", P(None, "tensor", "fsdp")),
  (
    r"layers/(attention/(query|key|value)|mlp/(gate|up))/bias",
    P(None, "tensor"),
  ),
  (r"layers/(attention/out|mlp/down)/bias", P(None, None)),
  (r"final_norm/(scale|bias)", P(None)),
  (r"head/kernel", P("fsdp", "tensor")),
)


def leaf_name(path: Sequence[Any]) -> str:
  """A leaf's path in a tree as `a/b/c`."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def is_stacked(name: str) -> bool:
  """Says whether the first axis of a parameter of that name is the layer."""
  return name.startswith("layers/")


def named_leaves(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by name, in the tree's order."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {leaf_name(path): leaf for path, leaf in leaves}


def shardings(tree: Any, mesh: Mesh) -> Any:
  """A NamedSharding for each leaf of a tree of arrays or shapes.

  InputError lists names without a rule, and sizes that no axis divides.
  """
  problems: list[str] = []

  def sharding(path: Sequence[Any], leaf: Any) -> NamedSharding:
    name = leaf_name(path)
    matching = [s for rule, s in DECODER_RULES if re.fullmatch(rule, name)]
    if not matching:
      problems.append(f"no sharding rule matches parameter {name!r}")
      return replicated(mesh)
    for size, axis in zip(leaf.shape, matching[0]):
      if axis is not None and size % mesh.shape[axis]:
        problems.append(
          f"{name}: size {size} is not a multiple of mesh axis "
          f"{axis}={mesh.shape[axis]}"
        )
    return NamedSharding(mesh, matching[0])

  result = jax.tree_util.tree_map_with_path(sharding, tree)
  check(problems)
  return result


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sequences are spread over the data and fsdp axes."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def batch_share(mesh: Mesh) -> tuple[int, int]:
  """The share of every batch that this process feeds: (index, of how many).

  Processes that only the tensor axis tells apart feed the same share.
  InputError if a process's sequences do not follow each other.
  """
  shards = batch_shards(mesh)
  places = batch_sharding(mesh).addressable_devices_indices_map((shards,))
  mine = sorted({place[0].start or 0 for place in places.values() if place})
  size = len(mine)
  if shards % size or mine != list(range(mine[0], mine[0] + size)):
    raise InputError(
      f"the mesh gives process {jax.process_index()} scattered shares of a "
      f"batch ({mine} of {shards}); order the axes so that they are together"
    )
  return mine[0] // size, shards // size


def place_batch(mesh: Mesh, local: np.ndarray) -> jax.Array:
  """The whole batch on the devices, from the share that this process feeds."""
  return jax.make_array_from_process_local_data(batch_sharding(mesh), local)


def batch_shards(mesh: Mesh) -> int:
  """The number of devices over which the sequences of a batch are spread."""
  return math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
