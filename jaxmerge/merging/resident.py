"""K equal trees that are merged again and again, where they fit.

On the devices, sharded as a model is; else in host memory; else in storage,
read anew for every merge. The merged tree is on the devices in any case.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.merged import Readings
from jaxmerge.checkpoints.model_inputs import load_params
from jaxmerge.errors import InputError
from jaxmerge.files import human_bytes
from jaxmerge.formats.lazy_tensors import (
  Chunk,
  TensorSpec,
  array_leaf,
  num_rows,
  place_leaves,
  placed,
  tree_of_leaves,
  widest,
)
from jaxmerge.merging import chunks, streaming
from jaxmerge.merging.average import (
  grouped_average,
  grouped_sum,
  weight_slopes,
)
from jaxmerge.merging.differences import (
  Differences,
  gram_of_chunks,
  gram_of_trees,
)
from jaxmerge.merging.groups import Groups
from jaxmerge.merging.weight_checks import normalise
from jaxmerge.parallel.exchange import least
from jaxmerge.parallel.mesh import device_budget, host_budget
from jaxmerge.parallel.rules import named_leaves

ON_DEVICES = "on the devices"
IN_HOST_MEMORY = "in host memory"
IN_STORAGE = "in storage, read for every merge"

Weights = Sequence[Sequence[float]]


class Trees:
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
    """Merges with weights that need not sum to one."""
    return grouped_sum(self._trees, weights_GxK, groups)

  def slopes(self, gradient: Any, groups: Groups) -> np.ndarray:
    """As average.weight_slopes."""
    trees = (self[k] for k in range(len(self) - 1))
    return weight_slopes(gradient, trees, self[-1], groups)

  def gram(self) -> np.ndarray:
    """Inner products of the differences of successive trees, float64[P, P].

    P = K - 1; see merging.differences.
    """
    return gram_of_trees(self._trees)


class TreesInStorage(Trees):
  """The same of trees in host memory or in storage, merged on the host.

  The shardings, like a tree, say where the merged one is to be.
  """

  def __init__(self, trees: Sequence[chunks.Stored], shardings: Any):
    super().__init__(trees)
    self._shardings = shardings

  def in_float32(self) -> "TreesInStorage":
    """The same, whose merges are not rounded to the dtypes of the trees."""
    wide = [
      tree._replace(dtypes=dict.fromkeys(tree.leaves, np.dtype(np.float32)))
      for tree in self._trees
    ]
    return TreesInStorage(wide, self._shardings)

  def __getitem__(self, k: int) -> Any:
    return place_leaves(self._trees[k].leaves, self._shardings)

  def average(
    self, weights_GxK: Weights, groups: Groups, previous: Any = None
  ) -> Any:
    del previous  # freed by its last holder
    return self.weighted_sum(list(map(normalise, weights_GxK)), groups)

  def weighted_sum(self, weights_GxK: Weights, groups: Groups) -> Any:
    weights_K = streaming.weights_of_groups(weights_GxK, groups)
    average = streaming.Average(self._trees, weights_K, names_problems=False)
    by_layer = len(weights_GxK) > 1
    trees = [tree.leaves for tree in self._trees]
    specs = chunks.specs(trees, by_layer=by_layer)
    where, leaves = named_leaves(self._shardings), {}
    for name, array in _whole_leaves(average, specs, by_layer=by_layer):
      leaves[name] = placed(array, where[name])
    return tree_of_leaves(leaves)

  def gram(self) -> np.ndarray:
    specs = chunks.specs([tree.leaves for tree in self._trees], by_layer=False)
    return gram_of_chunks(Differences(self._trees), specs)


def _whole_leaves(
  work: Callable[[Chunk], np.ndarray],
  specs: Mapping[str, TensorSpec],
  *,
  by_layer: bool = False,
) -> Iterator[tuple[str, np.ndarray]]:
  """Leaves by name, made of chunks; one at a time is whole."""
  arrays: list[np.ndarray] = []
  parts = chunks.chunks(specs, by_layer=by_layer)
  for name, _, stop, array in chunks.in_order(work, parts):
    arrays.append(array)
    if stop == num_rows(specs[name].shape):
      yield name, np.concatenate(arrays).reshape(specs[name].shape)
      arrays = []


class Placement(NamedTuple):
  """A place for trees, and the memory that they take there in all."""

  where: str
  needed: float


NOWHERE = Placement("", 0.0)


def choose_placement(
  checkpoints: Sequence[Checkpoint],
  shardings: Any,
  *,
  merged_trees: int,
  memory_budget_gb: float,
  merged_elsewhere: float | None = None,
) -> Placement:
  """Finds where K trees and what is made of them fit.

  Args:
    checkpoints: the K trees.
    shardings: like a tree.
    merged_trees: trees that a merge makes on the devices, beside the K.
    merged_elsewhere: that it makes there where the K are not; None: as many.
    memory_budget_gb: GiB for parameters, on all devices or in host memory; 0:
      seven tenths of what they have. In a job the least of its hosts counts.

  Raises:
    InputError: not even the merged trees fit on the devices.
  """
  where = named_leaves(shardings)
  size = per_device = 0.0
  dtypes = _widest(checkpoints)
  for name, leaf in checkpoints[0].metadata.leaves["params"].items():
    width = dtypes[name].itemsize
    size += math.prod(leaf["shape"]) * width
    part = where[name].shard_shape(tuple(leaf["shape"]))
    per_device += math.prod(part) * width
  limit = least(device_budget(memory_budget_gb))
  count = len(checkpoints)
  if (count + merged_trees) * per_device <= limit:
    return Placement(ON_DEVICES, (count + merged_trees) * size)
  made = merged_trees if merged_elsewhere is None else merged_elsewhere
  if made * per_device > limit:
    raise InputError(
      f"{human_bytes(made * per_device)} of memory are needed on each "
      f"device for parameters, {human_bytes(limit)} may be used; "
      "shard them over more devices (config.mesh.fsdp), or see "
      "config.memory_budget_gb"
    )
  on_cpu = jax.default_backend() == "cpu"  # whose memory is the host's
  of_host = least(host_budget(memory_budget_gb))
  if count * size <= of_host and not on_cpu:
    return Placement(IN_HOST_MEMORY, (count + made) * size)
  return Placement(IN_STORAGE, made * size)


def _widest(checkpoints: Sequence[Checkpoint]) -> dict[str, np.dtype]:
  """The dtype of each leaf that holds those of all checkpoints."""
  params = [c.metadata.leaves["params"] for c in checkpoints]
  return {
    name: widest(jax.numpy.dtype(leaves[name]["dtype"]) for leaves in params)
    for name in params[0]
  }


def load_trees(
  checkpoints: Sequence[Checkpoint], shardings: Any
) -> Iterator[Any]:
  """Each tree on the devices, in dtypes that hold those of all.

  Raises:
    InputError: a checkpoint's digests say that it is damaged.
  """
  dtypes = tree_of_leaves(_widest(checkpoints))
  for checkpoint in checkpoints:
    tree = load_params(checkpoint, shardings)
    yield jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), tree, dtypes)


def open_trees(
  checkpoints: Sequence[Checkpoint], shardings: Any, where: str
) -> Trees:
  """Brings the trees to their place, as choose_placement says.

  Raises:
    InputError: a checkpoint's digests say that it is damaged.
  """
  if where == ON_DEVICES:
    return Trees(list(load_trees(checkpoints, shardings)))
  dtypes = _widest(checkpoints)
  readings = Readings.of(checkpoints)
  trees = []
  for tree in chunks.stored(readings, [1.0] * len(checkpoints), dtypes):
    specs = chunks.specs([tree.leaves], by_layer=False)
    leaves = tree.leaves
    if where == IN_HOST_MEMORY:
      whole = _whole_leaves(tree.read, specs)
      leaves = {name: array_leaf(array) for name, array in whole}
    else:  # read for its digests alone
      for _ in chunks.in_order(tree.read, chunks.chunks(specs)):
        pass
    trees.append(chunks.Stored(tree.name, leaves, None, dtypes))
  readings.hashes()
  return TreesInStorage(trees, shardings)
