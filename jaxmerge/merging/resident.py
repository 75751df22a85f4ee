"""K equal trees that are merged again and again, where they fit.

On the devices, sharded as a model is; else in host memory; else in storage,
read anew for every merge. The merged tree is on the devices in any case.

K trees, G groups.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.merged import Readings
from jaxmerge.checkpoints.model_inputs import load_params
from jaxmerge.errors import InputError
from jaxmerge.files import human_bytes
from jaxmerge.formats.integrity.checksums import Checksum
from jaxmerge.formats.lazy_tensors import (
  Chunk,
  LazyTensor,
  TensorSpec,
  array_leaf,
  num_rows,
  place_leaves,
  tree_of_leaves,
)
from jaxmerge.merging import chunks, streaming
from jaxmerge.merging.average import (
  grouped_average,
  grouped_sum,
  weight_slopes,
)
from jaxmerge.merging.groups import Groups
from jaxmerge.merging.weight_checks import normalise
from jaxmerge.parallel.mesh import device_budget, host_budget
from jaxmerge.parallel.rules import named_leaves

ON_DEVICES = "on the devices"
IN_HOST_MEMORY = "in host memory"
IN_STORAGE = "in storage, read for every merge"

Weights = Sequence[Sequence[float]]


class TreesOnDevices:
  """K trees that are on the devices already, and their merges there."""

  def __init__(self, trees: Sequence[Any]):
    self._trees = list(trees)

  def __len__(self) -> int:
    return len(self._trees)

  def __getitem__(self, k: int) -> Any:
    """One of them, on the devices."""
    return self._trees[k]

  def average(
    self, weights_GxK: Weights, groups: Groups, previous: Any = None
  ) -> Any:
    """As average.grouped_average; `previous` is given up for the result."""
    return grouped_average(self._trees, weights_GxK, groups, previous)

  def weighted_sum(self, weights_GxK: Weights, groups: Groups) -> Any:
    """With weights that need not sum to one."""
    return grouped_sum(self._trees, weights_GxK, groups)

  def slopes(self, gradient: Any, groups: Groups) -> np.ndarray:
    return weight_slopes(gradient, self._trees, groups)


class TreesInStorage:
  """The same of trees in host memory or in storage, merged on the host.

  Args:
    names: of the trees.
    leaves_K: of each tree, by name.
    shardings: like a tree, where the merged one is to be.
  """

  def __init__(
    self,
    names: Sequence[str],
    leaves_K: Sequence[Mapping[str, LazyTensor]],
    shardings: Any,
  ):
    self._trees = [
      chunks.Stored(name, leaves)
      for name, leaves in zip(names, leaves_K, strict=True)
    ]
    self._shardings = shardings

  def __len__(self) -> int:
    return len(self._trees)

  def __getitem__(self, k: int) -> Any:
    return place_leaves(self._trees[k].leaves, self._shardings)

  def average(
    self, weights_GxK: Weights, groups: Groups, previous: Any = None
  ) -> Any:
    del previous  # freed by its last holder
    rows = [normalise(weights_K) for weights_K in weights_GxK]
    return self.weighted_sum(rows, groups)

  def weighted_sum(self, weights_GxK: Weights, groups: Groups) -> Any:
    weights_K = streaming.weights_of_groups(weights_GxK, groups)
    average = streaming.Average(self._trees, weights_K, names_problems=False)
    specs = chunks.specs(
      [tree.leaves for tree in self._trees], by_layer=len(weights_GxK) > 1
    )
    parts = chunks.in_order(average, chunks.chunks(specs))
    return _on_devices(parts, specs, self._shardings)

  def slopes(self, gradient: Any, groups: Groups) -> np.ndarray:
    last = self[-1]
    columns = [
      weight_slopes(gradient, [self[k], last], groups)[:, :1]
      for k in range(len(self) - 1)
    ]
    return np.concatenate([*columns, np.zeros_like(columns[0])], axis=1)


Trees = TreesOnDevices | TreesInStorage


def _on_devices(
  parts: Iterator[Chunk],
  specs: Mapping[str, TensorSpec],
  shardings: Any,
) -> Any:
  """A tree from its chunks; only one leaf at a time is whole on the host."""
  where = named_leaves(shardings)
  found: dict[str, jax.Array] = {}
  arrays: list[np.ndarray] = []
  for name, _, stop, array in parts:
    arrays.append(array)
    if stop == num_rows(specs[name].shape):
      whole = np.concatenate(arrays).reshape(specs[name].shape)
      found[name] = jax.device_put(whole, where[name])
      arrays = []
  return tree_of_leaves(found)


class Placement(NamedTuple):
  """Where trees are kept, and how much memory that takes in all."""

  where: str
  needed: float


def choose_placement(
  checkpoints: Sequence[Checkpoint],
  shardings: Any,
  *,
  merged_trees: int,
  memory_budget_gb: float,
) -> Placement:
  """Where K trees and what is made of them fit.

  Args:
    checkpoints: the K trees.
    shardings: like a tree.
    merged_trees: trees that a merge makes on the devices, beside the K.
    memory_budget_gb: GiB for parameters, on all devices or in host memory; 0:
      seven tenths of what they have.

  Raises:
    InputError: not even the merged trees fit on the devices.
  """
  leaves = checkpoints[0].metadata.leaves["params"]
  where = named_leaves(shardings)
  size = per_device = 0.0
  for name, leaf in leaves.items():
    width = np.dtype(jax.numpy.dtype(leaf["dtype"])).itemsize
    size += math.prod(leaf["shape"]) * width
    part = where[name].shard_shape(tuple(leaf["shape"]))
    per_device += math.prod(part) * width
  device_limit = device_budget(memory_budget_gb)
  host_limit = host_budget(memory_budget_gb)
  count = len(checkpoints)
  if (count + merged_trees) * per_device <= device_limit:
    return Placement(ON_DEVICES, (count + merged_trees) * size)
  if merged_trees * per_device > device_limit:
    raise InputError(
      f"{human_bytes(merged_trees * per_device)} of memory are needed on each "
      f"device for parameters, {human_bytes(device_limit)} may be used; "
      "shard them over more devices (config.mesh.fsdp), or see "
      "config.memory_budget_gb"
    )
  on_cpu = jax.default_backend() == "cpu"  # whose memory is the host's
  if count * size <= host_limit and not on_cpu:
    return Placement(IN_HOST_MEMORY, (count + merged_trees) * size)
  return Placement(IN_STORAGE, merged_trees * size)


def open_trees(
  checkpoints: Sequence[Checkpoint], shardings: Any, where: str
) -> Trees:
  """Brings the trees to their place; all that has digests is checked.

  Args:
    checkpoints: the K trees.
    shardings: like a tree.
    where: as choose_place says.

  Raises:
    InputError: a checkpoint is damaged.
  """
  if where == ON_DEVICES:
    return TreesOnDevices([load_params(c, shardings) for c in checkpoints])
  readings = Readings.of(checkpoints)
  leaves_K = [
    _read(checkpoint, checksum, keep=where == IN_HOST_MEMORY)
    for checkpoint, checksum in zip(*readings, strict=True)
  ]
  readings.hashes()
  return TreesInStorage([c.name for c in checkpoints], leaves_K, shardings)


def _read(
  checkpoint: Checkpoint, checksum: Checksum, *, keep: bool
) -> Mapping[str, LazyTensor]:
  """The leaves of a checkpoint, all read once; kept in memory or not."""
  leaves = checkpoint.open_leaves()
  tree = chunks.Stored(checkpoint.name, leaves, checksum)
  kept: dict[str, list[np.ndarray]] = {name: [] for name in leaves}
  parts = chunks.chunks(chunks.specs([leaves], by_layer=False))
  for chunk in chunks.in_order(tree.read, parts):
    if keep:
      kept[chunk.name].append(chunk.array)
  if not keep:
    return leaves
  return {
    name: array_leaf(np.concatenate(arrays).reshape(leaves[name].shape))
    for name, arrays in kept.items()
  }
