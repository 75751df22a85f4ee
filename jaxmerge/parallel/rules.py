"""Sharding by an ordered table of rules over parameter names.

The first pattern that matches a name decides; a name without a rule is an
error, so that a new parameter is never replicated by accident.
"""

import itertools
import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmerge.errors import InputError, check, grouped

P = PartitionSpec
_Tree = TypeVar("_Tree")
# Axes of the mesh that spread the sequences of a batch.
BATCH_AXES = ("replica", "data", "fsdp")

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


def spec_of(name: str) -> PartitionSpec | None:
  """Axes of the mesh over which a parameter lies; None if no rule says."""
  for pattern, spec in DECODER_RULES:
    if re.fullmatch(pattern, name):
      return spec
  return None


def shardings(tree: Any, mesh: Mesh) -> Any:
  """A NamedSharding for each leaf of a tree of arrays or shapes.

  InputError lists names without a rule, and the first size that each axis does
  not divide.
  """
  problems: list[str] = []
  uneven: dict[str, list[str]] = {axis: [] for axis in mesh.axis_names}

  def sharding(path: Sequence[Any], leaf: Any) -> NamedSharding:
    name = leaf_name(path)
    spec = spec_of(name)
    if spec is None:
      problems.append(f"no sharding rule matches parameter {name!r}")
      return replicated(mesh)
    for size, axis in zip(leaf.shape, spec):
      if axis is not None and size % mesh.shape[axis]:
        uneven[axis].append(
          f"{name}: size {size} is not a multiple of mesh axis "
          f"{axis}={mesh.shape[axis]}"
        )
    return NamedSharding(mesh, spec)

  result = jax.tree_util.tree_map_with_path(sharding, tree)
  check([*problems, *itertools.chain(*map(grouped, uneven.values()))])
  return result


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sequences are spread over BATCH_AXES; each is whole on its devices."""
  return NamedSharding(mesh, P(BATCH_AXES))


def activation_sharding(mesh: Mesh) -> NamedSharding:
  """Spreads what a program computes: (sequences, positions, ...)."""
  return NamedSharding(mesh, P(BATCH_AXES, "context"))


def batch_share(mesh: Mesh) -> tuple[int, int]:
  """The share of every batch that this process feeds: (index, of how many).

  Processes that only the tensor and context axes tell apart feed the same
  share. The sequences of a share need not follow each other on the mesh.
  InputError if shares overlap or differ in size.
  """
  shards = batch_shards(mesh)
  places = batch_sharding(mesh).devices_indices_map((shards,))
  fed: dict[int, set[int]] = {}
  for device in mesh.devices.flat:
    [part] = places[device]
    fed.setdefault(device.process_index, set()).add(part.start or 0)
  shares = sorted({tuple(sorted(share)) for share in fed.values()})
  if sum(map(len, shares)) != shards or len({*map(len, shares)}) > 1:
    raise InputError(
      "the mesh gives processes shares of a batch that overlap or differ in "
      f"size: {' * '.join(BATCH_AXES)} is {shards} for {len(fed)} processes; "
      "it must be a multiple of their number, or divide it"
    )
  mine = tuple(sorted(fed[jax.process_index()]))
  return shares.index(mine), len(shares)


def place_batch(mesh: Mesh, local: _Tree) -> _Tree:
  """The whole batch on the devices, from the share that this process feeds.

  A tree of arrays whose first axis is the sequences, on the host and then on
  the devices.
  """
  place = partial(jax.make_array_from_process_local_data, batch_sharding(mesh))
  return jax.tree.map(place, local)


def batch_shards(mesh: Mesh) -> int:
  """The number of parts into which the sequences of a batch are spread."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)
