"""Merges trees that lie in storage, some rows at a time.

However many and however large the trees are, only what a few portions need is
in memory. Portions are read, merged and handed on by several threads.

K trees.
"""

import collections
import concurrent.futures
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.checkpoints.leaves import (
  Leaf,
  LeafSpec,
  Rows,
  num_rows,
  row_shape,
)
from jaxmerge.checkpoints.merged import Readings
from jaxmerge.checkpoints.metadata import tree_of_leaves
from jaxmerge.checkpoints.norms import all_finite
from jaxmerge.checkpoints.tallies import BLOCK, Tally, blocks
from jaxmerge.errors import check
from jaxmerge.merging.groups import Groups
from jaxmerge.parallel.rules import is_stacked, named_leaves

# One reads and computes while the other does; more wait for the same disk.
WORKERS = 2
# Trees of an average that are read before they are added: two in one pass.
_TOGETHER = 2


class Portion(NamedTuple):
  """Some rows of the leaf of that name."""

  name: str
  start: int
  stop: int


class Stored(NamedTuple):
  """A tree in storage.

  Attributes:
    name: what the user calls it.
    leaves: by name.
    tally: sees each portion once; None where nothing is to be checked.
  """

  name: str
  leaves: Mapping[str, Leaf]
  tally: Tally | None = None

  def read(self, portion: Portion) -> np.ndarray:
    array = self.leaves[portion.name].rows(portion.start, portion.stop)
    if self.tally is not None:
      self.tally.add(Rows(portion.name, portion.start, array))
    return array


# What a method makes of equal one-leaf trees: of the base (None without) and
# of K others, from that row of the leaf on.
SliceMerge = Callable[[Any, Sequence[Any], int], Any]


def stored(readings: Readings, weights_K: Sequence[float]) -> list[Stored]:
  """The sources of a merge; those of weight zero are not opened."""
  return [
    Stored(source.name, source.open_leaves() if weight else {}, tally)
    for source, tally, weight in zip(*readings, weights_K, strict=True)
  ]


def specs(
  trees: Sequence[Mapping[str, Leaf]], *, by_layer: bool
) -> dict[str, LeafSpec]:
  """What the merged tree will be, with rows that are handled together.

  Args:
    trees: leaves of K equal trees.
    by_layer: stacked leaves are merged one layer at a time.
  """
  found = {}
  for name, first in trees[0].items():
    row = max(math.prod(first.shape[1:]), 1)
    together = max(BLOCK // row, 1)
    if by_layer and is_stacked(name):
      together = 1
    # What is stored together is read together; the smallest of equal ones.
    stored = math.lcm(*(tree[name].rows_together for tree in trees))
    together = max(together // stored, 1) * stored
    together = min(together, max(num_rows(first.shape), 1))
    found[name] = LeafSpec(first.shape, first.dtype, together)
  return found


def portions(
  merged: Mapping[str, LeafSpec], *, whole: bool = False
) -> Iterator[Portion]:
  """Of all leaves in order.

  Args:
    merged: of the merged tree.
    whole: leaves as a whole, of stacked ones each layer.
  """
  for name, spec in merged.items():
    count = num_rows(spec.shape)
    step = spec.rows_together
    if whole:
      step = 1 if is_stacked(name) else count
    for start in range(0, count, max(step, 1)):
      yield Portion(name, start, min(start + step, count))


def needed_bytes(
  merged: Mapping[str, LeafSpec], at_once: int, *, whole: bool, workers: int
) -> int:
  """Memory for portions at the same time, at most.

  Args:
    merged: of the merged tree.
    at_once: trees whose portions are held together, in float32; 0: one after
      the other is added up.
    whole: as `portions`.
    workers: portions that are made at the same time.
  """
  most = 0
  for name, spec in merged.items():
    rows = max(num_rows(spec.shape), 1)
    together = min(spec.rows_together, rows)
    if whole:
      together = 1 if is_stacked(name) else rows
    row = math.prod(spec.shape) // rows
    entries = row * together
    size = spec.dtype.itemsize
    # Read, summed in float32 and cast; or read, in float32 and as much again.
    averaged = (_TOGETHER + 1) * size + 4
    making = entries * (at_once * (size + 8) if at_once else averaged)
    if spec.rows_together > together:  # all that is stored together is decoded
      making += row * spec.rows_together * size
    most = max(most, workers * making + (workers + 1) * entries * size)
  return most


def in_order(
  work: Callable[[Portion], np.ndarray],
  parts: Iterable[Portion],
  workers: int = WORKERS,
) -> Iterator[Rows]:
  """What `work` makes of each part, in their order, a few parts ahead."""
  cpu = jax.local_devices(backend="cpu")[0]

  def done(part: Portion) -> Rows:
    with jax.default_device(cpu):
      return Rows(part.name, part.start, work(part))

  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    waiting: collections.deque[concurrent.futures.Future[Rows]]
    waiting = collections.deque()
    try:
      for part in parts:
        waiting.append(pool.submit(done, part))
        if len(waiting) > workers:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      for future in waiting:
        future.cancel()


def weights_of_groups(
  weights_GxK: Sequence[Sequence[float]], groups: Groups
) -> Callable[[Portion], Sequence[float]]:
  """The weights of a portion, which is of one layer where groups differ."""
  group_of = named_leaves(groups.of_leaf)

  def weights_K(portion: Portion) -> Sequence[float]:
    group = np.asarray(group_of[portion.name])
    return weights_GxK[int(group[portion.start] if group.ndim else group)]

  return weights_K


class Average:
  """sum_k w_k theta_k, in float32 with one cast at the end.

  A single tree of weight one is copied bit for bit; trees of weight
  zero are not read. Leaves of whole numbers and of more than 32 bits must be
  equal and are copied; InputError names one that is not.

  Args:
    trees: K equal trees.
    weights_K: of a portion, used as they are.
    names_problems: look for NaN and Inf.

  Attributes:
    problems: leaves with NaN or Inf; to be read when all portions are done.
  """

  def __init__(
    self,
    trees: Sequence[Stored],
    weights_K: Callable[[Portion], Sequence[float]],
    *,
    names_problems: bool = True,
  ):
    self._trees = trees
    self._names_problems = names_problems
    self._weights_K = weights_K
    self.problems: set[str] = set()

  def __call__(self, portion: Portion) -> np.ndarray:
    used = []
    for tree, weight in zip(self._trees, self._weights_K(portion), strict=True):
      if weight != 0:
        used.append((tree, weight))
      elif tree.leaves and tree.tally:  # whose digests are of all rows
        tree.read(portion)
    if len(used) == 1 and used[0][1] == 1:
      return used[0][0].read(portion)
    if not used:  # of weights that are a direction, not shares
      leaf = self._trees[0].leaves[portion.name]
      rows = portion.stop - portion.start
      return np.zeros((rows, *row_shape(leaf.shape)), leaf.dtype)
    if not _is_averageable(used[0][0], portion):
      return _common(portion, [tree for tree, _ in used])
    first = range(0, len(used), _TOGETHER)
    totals: list[jax.Array | None] = []
    for i in first:
      some = used[i : i + _TOGETHER]
      arrays = [tree.read(portion) for tree, _ in some]
      weights = tuple(np.float32(weight) for _, weight in some)
      step = _finish if i == first[-1] else _add
      parts = zip(*(blocks(array.reshape(-1)) for array in arrays))
      totals = [
        step(total, weights, tuple(block for _, block, _ in part))
        for total, part in itertools.zip_longest(totals, parts)
      ]
    shape = arrays[0].shape
    merged = [np.asarray(total) for total in totals]
    if not merged:  # the portion is empty
      return arrays[0]
    joined = np.concatenate(merged) if merged[1:] else merged[0]
    joined = joined[: arrays[0].size].reshape(shape)
    if self._names_problems and not all_finite(joined):
      self.problems |= _not_finite(portion, [tree for tree, _ in used])
    return joined


def _is_averageable(tree: Stored, portion: Portion) -> bool:
  dtype = tree.leaves[portion.name].dtype
  return bool(jnp.issubdtype(dtype, jnp.floating)) and dtype.itemsize <= 4


def _common(portion: Portion, trees: Sequence[Stored]) -> np.ndarray:
  """What cannot be averaged and is the same in all trees; else InputError."""
  first, *rest = (tree.read(portion) for tree in trees)
  check(
    f"{tree.name}: {portion.name} holds {first.dtype}, which cannot be "
    f"averaged, and is not that of {trees[0].name}"
    for tree, array in zip(trees[1:], rest)
    if array.tobytes() != first.tobytes()
  )
  return first


def _sum(
  total: jax.Array | None,
  weights: tuple[jax.Array, ...],
  parts: tuple[jax.Array, ...],
) -> jax.Array:
  """In float32, from left to right; the total so far may be none."""
  terms = [w * part.astype(jnp.float32) for w, part in zip(weights, parts)]
  return functools.reduce(jnp.add, terms if total is None else [total, *terms])


_add = jax.jit(_sum, donate_argnums=0)


@jax.jit
def _finish(
  total: jax.Array | None,
  weights: tuple[jax.Array, ...],
  parts: tuple[jax.Array, ...],
) -> jax.Array:
  """The sum with the last trees, cast."""
  return _sum(total, weights, parts).astype(parts[0].dtype)


def _not_finite(portion: Portion, trees: Sequence[Stored]) -> set[str]:
  """Which trees have NaN or Inf there; else the sum has left the range."""
  found = {
    f"{tree.name}: {portion.name} holds NaN or Inf"
    for tree in trees
    if not all_finite(
      tree.leaves[portion.name].rows(portion.start, portion.stop)
    )
  }
  return found or {_too_large(portion)}


def _too_large(portion: Portion) -> str:
  return f"the merged {portion.name} is too large for its dtype"


class Slices:
  """What is not elementwise: whole tensors of all trees at once.

  Args:
    merge: of one-leaf trees.
    base: what all came from, for methods that need it.
    trees: K equal trees that weigh anything.

  Attributes:
    problems: leaves with NaN or Inf; to be read when all portions are done.
  """

  def __init__(
    self, merge: SliceMerge, base: Stored | None, trees: Sequence[Stored]
  ):
    self._merge = merge
    self._has_base = base is not None
    self._sources = [*([base] if base else []), *trees]
    self.problems: set[str] = set()

  def __call__(self, portion: Portion) -> np.ndarray:
    if not _is_averageable(self._sources[0], portion):
      return _common(portion, self._sources)
    arrays = [tree.read(portion) for tree in self._sources]
    bad = {
      f"{tree.name}: {portion.name} holds NaN or Inf"
      for tree, array in zip(self._sources, arrays)
      if not all_finite(array)
    }
    if bad or not arrays[0].size:
      self.problems |= bad
      return arrays[0]
    merged = self._merged(portion, arrays)
    if not all_finite(merged):
      self.problems.add(_too_large(portion))
    return merged

  def _merged(
    self, portion: Portion, arrays: Sequence[np.ndarray]
  ) -> np.ndarray:
    shape = self._sources[0].leaves[portion.name].shape
    one_leaf = [
      tree_of_leaves({portion.name: array if shape else array.reshape(())})
      for array in arrays
    ]
    has_base = self._has_base
    start, ends = (one_leaf[0], one_leaf[1:]) if has_base else (None, one_leaf)
    (found,) = named_leaves(self._merge(start, ends, portion.start)).values()
    return np.asarray(found).reshape(arrays[0].shape)
