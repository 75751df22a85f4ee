"""Adds up digests and norms over a tree's rows as they pass.

Chunks may come in any order and from several threads.
"""

import dataclasses
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from jaxmerge.formats.integrity.digest import hexadecimal, part_lanes
from jaxmerge.formats.integrity.norms import part_squares
from jaxmerge.formats.lazy_tensors import Chunk, LazyTensor, TensorSpec

# Elements that a program sees at once; the last block of a part is padded to a
# power of two, so that few programs are compiled.
BLOCK = 1 << 20
_SMALLEST = 1 << 12


class Checksum(Protocol):
  """Sees each chunk of a tree once."""

  def add(self, chunk: Chunk) -> None: ...


def blocks(flat: np.ndarray) -> Iterator[tuple[int, np.ndarray, int]]:
  """(first element, block, how many elements count) of an array of one axis."""
  for first in range(0, flat.size, BLOCK):
    block = flat[first : first + BLOCK]
    size = max(_SMALLEST, 1 << (block.size - 1).bit_length())
    count = block.size
    if count < size:
      block = np.concatenate([block, np.zeros(size - count, flat.dtype)])
    yield first, block, count


class LeafChecksum:
  """Digest and norm of each leaf, as in a checkpoint's metadata.

  Args:
    norms: without them, of what is only compared with its digests, `leaves`
      gives norms of 0.
  """

  def __init__(self, *, norms: bool = True) -> None:
    self._norms = norms
    self._lock = threading.Lock()
    # Both lanes of the digest and the sum of squares.
    self._sums: dict[str, tuple[int, int, float]] = {}

  def add(self, chunk: Chunk) -> None:
    flat = np.ascontiguousarray(chunk.array).reshape(-1)
    offset = chunk.start * (flat.size // max(len(chunk.array), 1))
    a, b, squares = 0, 0, 0.0
    for first, block, count in blocks(flat):
      lanes = part_lanes(block, offset + first, count)
      a, b = a + lanes[0], b + lanes[1]
      squares += part_squares(block) if self._norms else 0.0
    with self._lock:
      old = self._sums.get(chunk.name, (0, 0, 0.0))
      self._sums[chunk.name] = (old[0] + a, old[1] + b, old[2] + squares)

  def has(self, name: str) -> bool:
    """Says whether anything of that leaf was seen."""
    return name in self._sums

  def digest(self, name: str) -> str:
    return hexadecimal(self._sums.get(name, (0, 0))[:2])

  def leaves(
    self, specs: Mapping[str, TensorSpec]
  ) -> dict[str, dict[str, Any]]:
    """Describes each leaf for metadata, as describe_leaves."""
    found = {}
    for name, spec in specs.items():
      is_floating = jnp.issubdtype(spec.dtype, jnp.floating)
      seen = name in self._sums and is_floating
      norm = math.sqrt(self._sums[name][2]) if seen else 0.0
      found[name] = describe_leaf(
        spec.shape,
        str(spec.dtype),
        self.digest(name),
        norm if math.isfinite(norm) else None,
      )
    return found


class ReadMark:
  """Notes whether anything was read of a tree that has no digests."""

  def __init__(self) -> None:
    self.seen = False

  def add(self, chunk: Chunk) -> None:
    del chunk
    self.seen = True


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _WatchedLeaf(LazyTensor):
  name: str
  leaf: LazyTensor
  checksum: Checksum

  def rows(self, start: int, stop: int) -> np.ndarray:
    array = self.leaf.rows(start, stop)
    self.checksum.add(Chunk(self.name, start, stop, array))
    return array


def watched(
  leaves: Mapping[str, LazyTensor], checksum: Checksum
) -> dict[str, LazyTensor]:
  """Leaves whose checksum sees what is read of them."""
  return {
    name: _WatchedLeaf(
      leaf.shape,
      leaf.dtype,
      leaf.rows_together,
      name=name,
      leaf=leaf,
      checksum=checksum,
    )
    for name, leaf in leaves.items()
  }


def describe_leaf(
  shape: Sequence[int], dtype: str, digest: str, norm: float | None
) -> dict[str, Any]:
  """Describes a leaf for metadata; norm None: it holds NaN or Inf."""
  return {"shape": list(shape), "dtype": dtype, "digest": digest, "norm": norm}
