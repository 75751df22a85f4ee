"""Chunks of K trees in storage: which there are, read and made in order.

However many and however large the trees are, only what a few chunks need is
in memory. Chunks are read, merged and handed on by several threads.
"""

import collections
import concurrent.futures
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxmerge.checkpoints.merged import Readings
from jaxmerge.formats.integrity.checksums import BLOCK, Checksum
from jaxmerge.formats.lazy_tensors import (
  Chunk,
  LazyTensor,
  TensorSpec,
  num_rows,
  widest,
)
from jaxmerge.huggingface.tensor_kinds import is_floating
from jaxmerge.parallel.rules import is_stacked

# One reads and computes while the other does; more wait for the same disk.
WORKERS = 2
# Trees of an average that are read before they are added: two in one pass.
TOGETHER = 2
# Bytes; as much as the C library lets its threshold grow.
_LARGEST_KEPT = 31 << 20


class Stored(NamedTuple):
  """A tree in storage.

  Attributes:
    name: as messages say it.
    leaves: by name.
    checksum: sees each chunk once; None where nothing is to be checked.
    dtypes: what leaves are widened to when they are read; as stored without.
  """

  name: str
  leaves: Mapping[str, LazyTensor]
  checksum: Checksum | None = None
  dtypes: Mapping[str, np.dtype] = {}

  def read(self, chunk: Chunk) -> np.ndarray:
    array = self.leaves[chunk.name].rows(chunk.start, chunk.stop)
    if self.checksum is not None:
      self.checksum.add(chunk._replace(array=array))
    return array.astype(self.dtypes.get(chunk.name, array.dtype), copy=False)


def stored(
  readings: Readings,
  weights_K: Sequence[float],
  dtypes: Mapping[str, np.dtype] = {},
) -> list[Stored]:
  """The sources of a merge; those of weight zero are not opened."""
  return [
    Stored(
      source.name, source.open_leaves() if weight else {}, checksum, dtypes
    )
    for source, checksum, weight in zip(*readings, weights_K, strict=True)
  ]


def specs(
  trees: Sequence[Mapping[str, LazyTensor]], *, by_layer: bool, dtype: str = ""
) -> dict[str, TensorSpec]:
  """Finds what the merged tree will be, with rows that are handled together.

  Args:
    trees: leaves of K trees; what not all of them have is left out.
    by_layer: stacked leaves are merged one layer at a time.
    dtype: of what is floating-point; "": the widest of the trees.
  """
  found = {}
  for name, first in trees[0].items():
    if not all(name in tree for tree in trees):
      continue
    together = max(BLOCK // max(math.prod(first.shape[1:]), 1), 1)
    if by_layer and is_stacked(name):
      together = 1
    # What is stored together is read together; the smallest of equal ones.
    stored = math.lcm(*(tree[name].rows_together for tree in trees))
    together = max(together // stored, 1) * stored
    together = min(together, max(num_rows(first.shape), 1))
    kind = widest(tree[name].dtype for tree in trees)
    if dtype and is_floating(kind):
      kind = np.dtype(dtype)
    found[name] = TensorSpec(first.shape, kind, together)
  return found


def widened(
  trees: Sequence[Mapping[str, LazyTensor]], merged: Mapping[str, TensorSpec]
) -> dict[str, np.dtype]:
  """Dtypes that hold a merged leaf, and those of all trees up to float32."""
  single = np.dtype(np.float32)
  return {
    name: widest(
      [spec.dtype]
      + [min(tree[name].dtype, single, key=_width) for tree in trees]
    )
    for name, spec in merged.items()
    if is_floating(spec.dtype)
  }


def _width(dtype: np.dtype) -> int:
  return dtype.itemsize


def chunks(
  merged: Mapping[str, TensorSpec],
  *,
  whole: bool = False,
  by_layer: bool = False,
) -> Iterator[Chunk]:
  """All chunks in the order of leaves; whole leaves, of a stack each layer.

  `by_layer` only keeps layers apart, also where several are stored together.
  """
  for name, spec in merged.items():
    count = num_rows(spec.shape)
    step = spec.rows_together
    if (whole or by_layer) and is_stacked(name):
      step = 1
    elif whole:
      step = count
    for start in range(0, count, max(step, 1)):
      yield Chunk(name, start, min(start + step, count))


def needed_bytes(
  merged: Mapping[str, TensorSpec], at_once: int, *, whole: bool, workers: int
) -> int:
  """Memory for chunks at the same time, at most.

  Args:
    merged, whole: as `chunks`.
    at_once: trees whose chunks are held together, in float32; 0: one after
      the other is added up.
    workers: chunks that are made at the same time.
  """
  most = 0
  for name, spec in merged.items():
    rows = max(num_rows(spec.shape), 1)
    together = min(spec.rows_together, rows)
    if whole:
      together = 1 if is_stacked(name) else rows
    row = math.prod(spec.shape) // rows
    entries, size = row * together, spec.dtype.itemsize
    # Read, summed in float32 and cast; or read, in float32 and as much again.
    averaged = (TOGETHER + 1) * size + 4
    making = entries * (at_once * (size + 8) if at_once else averaged)
    if spec.rows_together > together:  # all that is stored together is decoded
      making += row * spec.rows_together * size
    most = max(most, workers * making + (workers + 1) * entries * size)
  return most


def in_order(
  work: Callable[[Chunk], np.ndarray],
  parts: Iterable[Chunk],
  workers: int = WORKERS,
  begun: Callable[[str], None] = lambda name: None,
) -> Iterator[Chunk]:
  """Yields each part with what `work` makes of it, in their order.

  Args:
    work: called by several threads, for a few parts ahead.
    parts: of each leaf in order.
    workers: threads.
    begun: told each leaf's name before its first part is handed on.
  """
  cpu = jax.local_devices(backend="cpu")[0]
  # The C library of Linux gives freed memory back to the kernel, which clears
  # it page by page when it is asked for again, unless larger pieces have been
  # freed before (mallopt(3), M_MMAP_THRESHOLD). Chunks are smaller.
  np.empty(_LARGEST_KEPT, np.uint8)
  waiting = collections.deque[concurrent.futures.Future[Chunk]]()

  def done(part: Chunk) -> Chunk:
    with jax.default_device(cpu):
      return part._replace(array=work(part))

  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    try:
      for part in itertools.chain(parts, [None] * workers):
        if part:
          waiting.append(pool.submit(done, part))
        if len(waiting) > (workers if part else 0):
          chunk = waiting.popleft().result()
          if chunk.start == 0:
            begun(chunk.name)
          yield chunk
    finally:
      for future in waiting:
        future.cancel()
