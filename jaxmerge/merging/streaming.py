"""Merges K trees that lie in storage, chunk by chunk."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxmerge.formats.integrity.checksums import blocks
from jaxmerge.formats.integrity.norms import all_finite
from jaxmerge.formats.lazy_tensors import Chunk
from jaxmerge.merging.average import weighted_sum
from jaxmerge.merging.chunks import TOGETHER, Stored
from jaxmerge.merging.groups import Groups
from jaxmerge.merging.method import Method
from jaxmerge.merging.per_tensor import merge_tensors
from jaxmerge.merging.weight_checks import weighing
from jaxmerge.parallel.rules import named_leaves


def weights_of_groups(
  weights_GxK: Sequence[Sequence[float]], groups: Groups
) -> Callable[[Chunk], Sequence[float]]:
  """The weights of a chunk, which is of one layer where groups differ.

  What is in no group is never averaged: it is copied from an input that is
  read, and where one alone is, it weighs one in every group.
  """
  group_of = named_leaves(groups.of_leaf)
  first = np.int32(0)

  def weights_K(chunk: Chunk) -> Sequence[float]:
    group = np.asarray(group_of.get(chunk.name, first))
    return weights_GxK[int(group[chunk.start] if group.ndim else group)]

  return weights_K


class Average:
  """sum_k w_k theta_k, in float32 with one cast at the end.

  A single tree of weight one is copied bit for bit; trees of weight
  zero are not read.

  Args:
    trees: K equal trees.
    weights_K: of a chunk, used as they are.
    names_problems: look for NaN and Inf.

  Attributes:
    problems: leaves with NaN or Inf; to be read when all chunks are done.
  """

  def __init__(
    self,
    trees: Sequence[Stored],
    weights_K: Callable[[Chunk], Sequence[float]],
    *,
    names_problems: bool = True,
  ):
    self._trees = trees
    self._names_problems = names_problems
    self._weights_K = weights_K
    self.problems: set[str] = set()

  def __call__(self, chunk: Chunk) -> np.ndarray:
    weights_K = self._weights_K(chunk)
    for tree, weight in zip(self._trees, weights_K, strict=True):
      if weight == 0 and tree.leaves and tree.checksum:  # digests see all rows
        tree.read(chunk)
    trees, weights = weighing(self._trees, weights_K)
    if weights == [1]:
      return trees[0].read(chunk)
    if not trees:  # of weights that are a direction, not shares
      leaf = self._trees[0].leaves[chunk.name]
      rows = chunk.stop - chunk.start
      return np.zeros((rows, *leaf.shape[1:]), leaf.dtype)
    totals: list[jax.Array | None] = []
    for i in range(0, len(trees), TOGETHER):
      arrays = [tree.read(chunk) for tree in trees[i : i + TOGETHER]]
      some = tuple(map(np.float32, weights[i : i + TOGETHER]))
      step = _add if i + TOGETHER < len(trees) else _finish
      parts = zip(*(blocks(array.reshape(-1)) for array in arrays))
      totals = [
        step(total, some, tuple(block for _, block, _ in part))
        for total, part in itertools.zip_longest(totals, parts)
      ]
    if not totals:  # the chunk is empty
      return arrays[0]
    merged = [np.asarray(total) for total in totals]
    joined = np.concatenate(merged) if merged[1:] else merged[0]
    joined = joined[: arrays[0].size].reshape(arrays[0].shape)
    if self._names_problems and not all_finite(joined):
      again = [
        t.leaves[chunk.name].rows(chunk.start, chunk.stop) for t in trees
      ]
      if is_mask(again):
        return again[0].astype(joined.dtype)
      bad = not_finite(chunk, trees, again)
      self.problems |= bad or {too_large(chunk.name)}
    return joined


# The sum of a block so far goes on in its own memory; with the last trees it
# is cast.
_add = jax.jit(
  lambda total, weights, parts: weighted_sum(weights, parts, total),
  donate_argnums=0,
)
_finish = jax.jit(
  lambda total, weights, parts: weighted_sum(weights, parts, total).astype(
    parts[0].dtype
  )
)


def not_finite(
  chunk: Chunk, trees: Sequence[Stored], arrays: Iterable[np.ndarray]
) -> set[str]:
  """Names the trees that have NaN or Inf there."""
  return {
    f"{tree.name}: {chunk.name} holds NaN or Inf"
    for tree, array in zip(trees, arrays)
    if not all_finite(array)
  }


def is_mask(arrays: Sequence[np.ndarray]) -> bool:
  """Says whether all are equal and only have -inf beside what is finite."""
  first, *rest = arrays
  numbers = first.astype(np.float32)
  is_masked = np.all(np.isneginf(numbers) | np.isfinite(numbers))
  return bool(is_masked) and all(np.array_equal(first, x) for x in rest)


def too_large(name: str) -> str:
  return f"the merged {name} is too large for its dtype"


class Tensors:
  """Chunks of all trees at once, merged by a method that acts on tensors.

  Args:
    method, knobs: of the merge.
    trees: K equal trees that weigh anything.
    weights_K: ready for use.
    base: what all came from, for methods that need it.

  Attributes:
    problems: leaves with NaN or Inf; to be read when all chunks are done.
  """

  def __init__(
    self,
    method: Method,
    knobs: Any,
    trees: Sequence[Stored],
    weights_K: Sequence[float],
    base: Stored | None,
  ):
    self._method = method
    self._knobs = knobs
    self._weights_K = weights_K
    self._sources = [*([base] if base else []), *trees]
    self.problems: set[str] = set()

  def __call__(self, chunk: Chunk) -> np.ndarray:
    arrays = [tree.read(chunk) for tree in self._sources]
    bad = not_finite(chunk, self._sources, arrays)
    if bad or not arrays[0].size:
      self.problems |= set() if is_mask(arrays) else bad
      return arrays[0]
    shape = arrays[0].shape
    if not self._sources[0].leaves[chunk.name].shape:
      arrays = [array.reshape(()) for array in arrays]
    start = arrays.pop(0) if self._method.base else None
    merged = merge_tensors(
      self._method,
      self._knobs,
      arrays,
      self._weights_K,
      start,
      name=chunk.name,
      first_layer=chunk.start,
    )
    found = np.asarray(merged).reshape(shape)
    if not all_finite(found):
      self.problems.add(too_large(chunk.name))
    return found
