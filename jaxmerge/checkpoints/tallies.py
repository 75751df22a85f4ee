"""What is added up over a tree's rows as they pass: digests and norms.

Chunks may come in any order and from several threads.
"""

import math
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from jaxmerge.checkpoints.digest import hexadecimal, part_lanes
from jaxmerge.checkpoints.leaves import Chunk, Leaf, LeafSpec
from jaxmerge.checkpoints.metadata import (
  describe_leaf,
)
from jaxmerge.checkpoints.norms import part_squares

# Elements that a program sees at once; the last block of a part is padded to a
# power of two, so that few programs are compiled.
BLOCK = 1 << 20
_SMALLEST = 1 << 12


class Tally(Protocol):
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


class LeafTally:
  """Digest and norm of each leaf, as in a checkpoint's metadata."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._lanes: dict[str, tuple[int, int]] = {}
    self._squares: dict[str, float] = {}

  def add(self, chunk: Chunk) -> None:
    flat = np.ascontiguousarray(chunk.array).reshape(-1)
    offset = chunk.start * (flat.size // max(len(chunk.array), 1))
    a = b = 0
    squares = 0.0
    for first, block, count in blocks(flat):
      lanes = part_lanes(block, offset + first, count)
      a, b = a + lanes[0], b + lanes[1]
      squares += part_squares(block)
    with self._lock:
      old = self._lanes.get(chunk.name, (0, 0))
      self._lanes[chunk.name] = (old[0] + a, old[1] + b)
      self._squares[chunk.name] = self._squares.get(chunk.name, 0.0) + squares

  def has(self, name: str) -> bool:
    """Whether anything of that leaf was seen."""
    return name in self._lanes

  def digest(self, name: str) -> str:
    return hexadecimal(self._lanes.get(name, (0, 0)))

  def leaves(self, specs: Mapping[str, LeafSpec]) -> dict[str, dict[str, Any]]:
    """What metadata says of each leaf, as describe_leaves."""
    found = {}
    for name, spec in specs.items():
      norm = 0.0
      if jnp.issubdtype(spec.dtype, jnp.floating):
        norm = math.sqrt(self._squares.get(name, 0.0))
      found[name] = describe_leaf(
        spec.shape,
        str(spec.dtype),
        self.digest(name),
        norm if math.isfinite(norm) else None,
      )
    return found


class SeenTally:
  """Whether anything was read of a tree that has no digests."""

  def __init__(self) -> None:
    self.seen = False

  def add(self, chunk: Chunk) -> None:
    del chunk
    self.seen = True


class WatchedLeaf(NamedTuple):
  """A leaf whose tally sees what is read of it."""

  name: str
  leaf: Leaf
  tally: Tally

  @property
  def shape(self) -> tuple[int, ...]:
    return self.leaf.shape

  @property
  def dtype(self) -> np.dtype:
    return self.leaf.dtype

  @property
  def rows_together(self) -> int:
    return self.leaf.rows_together

  def rows(self, start: int, stop: int) -> np.ndarray:
    array = self.leaf.rows(start, stop)
    self.tally.add(Chunk(self.name, start, stop, array))
    return array


def watched(leaves: Mapping[str, Leaf], tally: Tally) -> dict[str, Leaf]:
  return {name: WatchedLeaf(name, leaf, tally) for name, leaf in leaves.items()}
