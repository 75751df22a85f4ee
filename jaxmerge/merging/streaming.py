"""Merges trees that lie in storage, chunk by chunk.

K trees.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.errors import check
from jaxmerge.formats.integrity.checksums import blocks
from jaxmerge.formats.integrity.norms import all_finite
from jaxmerge.formats.lazy_tensors import Chunk
from jaxmerge.merging.average import weighted_sum
from jaxmerge.merging.chunks import TOGETHER, Stored
from jaxmerge.merging.groups import Groups
from jaxmerge.merging.method import Method
from jaxmerge.merging.per_tensor import merge_tensors
from jaxmerge.parallel.rules import named_leaves


def weights_of_groups(
  weights_GxK: Sequence[Sequence[float]], groups: Groups
) -> Callable[[Chunk], Sequence[float]]:
  """The weights of a chunk, which is of one layer where groups differ."""
  group_of = named_leaves(groups.of_leaf)

  def weights_K(chunk: Chunk) -> Sequence[float]:
    group = np.asarray(group_of[chunk.name])
    return weights_GxK[int(group[chunk.start] if group.ndim else group)]

  return weights_K


class Average:
  """sum_k w_k theta_k, in float32 with one cast at the end.

  A single tree of weight one is copied bit for bit; trees of weight
  zero are not read. Leaves of whole numbers and of more than 32 bits must be
  equal and are copied; InputError names one that is not.

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
    used = []
    for tree, weight in zip(self._trees, self._weights_K(chunk), strict=True):
      if weight != 0:
        used.append((tree, weight))
      elif tree.leaves and tree.checksum:  # whose digests are of all rows
        tree.read(chunk)
    if len(used) == 1 and used[0][1] == 1:
      return used[0][0].read(chunk)
    if not used:  # of weights that are a direction, not shares
      leaf = self._trees[0].leaves[chunk.name]
      rows = chunk.stop - chunk.start
      return np.zeros((rows, *leaf.shape[1:]), leaf.dtype)
    if not _is_averageable(used[0][0], chunk):
      return _common(chunk, [tree for tree, _ in used])
    first = range(0, len(used), TOGETHER)
    totals: list[jax.Array | None] = []
    for i in first:
      some = used[i : i + TOGETHER]
      arrays = [tree.read(chunk) for tree, _ in some]
      weights = tuple(np.float32(weight) for _, weight in some)
      step = _finish if i == first[-1] else _add
      parts = zip(*(blocks(array.reshape(-1)) for array in arrays))
      totals = [
        step(total, weights, tuple(block for _, block, _ in part))
        for total, part in itertools.zip_longest(totals, parts)
      ]
    shape = arrays[0].shape
    merged = [np.asarray(total) for total in totals]
    if not merged:  # the chunk is empty
      return arrays[0]
    joined = np.concatenate(merged) if merged[1:] else merged[0]
    joined = joined[: arrays[0].size].reshape(shape)
    if self._names_problems and not all_finite(joined):
      self.problems |= _not_finite(chunk, [tree for tree, _ in used])
    return joined


def _is_averageable(tree: Stored, chunk: Chunk) -> bool:
  dtype = tree.leaves[chunk.name].dtype
  return bool(jnp.issubdtype(dtype, jnp.floating)) and dtype.itemsize <= 4


def _common(chunk: Chunk, trees: Sequence[Stored]) -> np.ndarray:
  """What cannot be averaged and is the same in all trees; else InputError."""
  first, *rest = (tree.read(chunk) for tree in trees)
  check(
    f"{tree.name}: {chunk.name} holds {first.dtype}, which cannot be "
    f"averaged, and is not that of {trees[0].name}"
    for tree, array in zip(trees[1:], rest)
    if array.tobytes() != first.tobytes()
  )
  return first


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


def _not_finite(chunk: Chunk, trees: Sequence[Stored]) -> set[str]:
  """Which trees have NaN or Inf there; else the sum has left the range."""
  found = {
    f"{tree.name}: {chunk.name} holds NaN or Inf"
    for tree in trees
    if not all_finite(tree.leaves[chunk.name].rows(chunk.start, chunk.stop))
  }
  return found or {_too_large(chunk)}


def _too_large(chunk: Chunk) -> str:
  return f"the merged {chunk.name} is too large for its dtype"


class Tensors:
  """Chunks of all trees at once, merged by a method that acts on tensors.

  Args:
    method: of the merge.
    knobs: of the method.
    trees: K equal trees that weigh anything.
    weights_K: of the trees, ready for use.
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
    if not _is_averageable(self._sources[0], chunk):
      return _common(chunk, self._sources)
    arrays = [tree.read(chunk) for tree in self._sources]
    bad = {
      f"{tree.name}: {chunk.name} holds NaN or Inf"
      for tree, array in zip(self._sources, arrays)
      if not all_finite(array)
    }
    if bad or not arrays[0].size:
      self.problems |= bad
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
      self.problems.add(_too_large(chunk))
    return found
