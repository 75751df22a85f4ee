"""Training batches: a grain pipeline over windows of cached tokens.

G: sequences in a batch. L: targets in a sequence. P: shares of a batch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import grain
import numpy as np

from jaxmerge.data.batch import Batch
from jaxmerge.data.cache import SplitTokens
from jaxmerge.data.shares import apportioned, pick, whole_weights
from jaxmerge.errors import check

_ENDLESS = 2**31  # batches: as many as a run may have steps

# Batches of a share, from a position on.
Batches = Callable[[int], Iterator[Batch]]


class Windows(Protocol):
  """Sequences of L targets; each a row of a Batch."""

  @property
  def targets(self) -> int:
    """Targets that count, in all windows."""

  def __len__(self) -> int: ...

  def __getitem__(self, window: int) -> Batch: ...


class Concatenated:
  """Windows of a stream of documents.

  Window i is tokens iL to iL + L, both included, so that every token but the
  stream's first is a target once; the last ones that fill no window are not.
  """

  def __init__(self, tokens: SplitTokens, seq_len: int) -> None:
    self._tokens_T, self._seq_len = tokens.tokens_T, seq_len

  def __len__(self) -> int:
    return max(len(self._tokens_T) - 1, 0) // self._seq_len

  @property
  def targets(self) -> int:
    return len(self) * self._seq_len

  def __getitem__(self, window: int) -> Batch:
    start = window * self._seq_len
    return Batch(self._tokens_T[start : start + self._seq_len + 1])


class Part(NamedTuple):
  """Windows to train on, with their weight and name in a mixture."""

  windows: Windows
  weight: float = 1.0
  name: str = ""


def train_batches(
  parts: Sequence[Part],
  *,
  batch_size: int,
  seed: int,
  share: int = 0,
  shares: int = 1,
  prefetch: int = 2,
) -> Batches:
  """Endless batches, from any position.

  Every epoch of a part is shuffled anew, from the seed and its name; parts take
  turns in exact shares. Batch b has elements bG to (b + 1)G of one global
  order, and share p of P the rows pG/P to (p + 1)G/P of them, so that rows too
  are the same on any number of processes.

  The position is the number of batches before. It means the same windows only
  with the same parts, batch_size and seed.

  Args:
    batch_size: G, sequences in a batch over all processes.
    share, shares: which share of how many this process reads.
    prefetch: batches that a thread reads ahead; 0 reads when asked.

  Returns:
    A function of a position: the batches of G / P sequences from there on.

  Raises:
    InputError: a part has fewer windows than a batch takes of it.
  """
  weights = list(whole_weights(_weights(parts)).values())
  check(_shortages(parts, weights, batch_size))
  ordered = [
    grain.MapDataset.source(part.windows)
    .seed(_seed(seed, part.name))
    .shuffle()
    .repeat(None)
    for part in parts
  ]
  rows = batch_size // shares
  options = grain.ReadOptions(
    num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch
  )

  def row(index: int) -> Batch:
    part, number = pick(weights, index)
    return ordered[part][number]

  def rows_of(batch: int) -> Batch:
    first = batch * batch_size + share * rows
    return _stacked([row(i) for i in range(first, first + rows)])

  def batches(position: int) -> Iterator[Batch]:
    numbers = grain.MapDataset.range(position, _ENDLESS)
    return iter(numbers.map(rows_of).to_iter_dataset(options))

  return batches


def epochs(parts: Sequence[Part], sequences: int) -> dict[str, float]:
  """Says how often each part is gone through in so many sequences."""
  shares = apportioned(_weights(parts), sequences)
  return {p.name: shares[p.name] / max(len(p.windows), 1) for p in parts}


def _weights(parts: Sequence[Part]) -> dict[str, float]:
  return {part.name: part.weight for part in parts}


def _seed(seed: int, name: str) -> int:
  """A corpus that is alone has the seed itself."""
  if not name:
    return seed
  digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
  return int.from_bytes(digest[:4], "little")


def _shortages(
  parts: Sequence[Part], weights: Sequence[int], batch_size: int
) -> Iterator[str]:
  for (windows, _, name), weight in zip(parts, weights, strict=True):
    needed = -(-batch_size * weight // sum(weights))
    if len(windows) < needed:
      whose, what = f"{name}: " * bool(name), f"one batch of {batch_size}"
      if len(parts) > 1:
        what = f"the {needed} of {what}"
      yield (
        f"{whose}the train split has {len(windows)} sequences, fewer than "
        f"{what}; use more text, or a smaller seq_len or batch_size"
      )


def _stacked(rows: list[Batch]) -> Batch:
  tokens_BxL1, segments_BxL1 = zip(*rows)
  return Batch(
    np.stack(tokens_BxL1).astype(np.int32),
    None if segments_BxL1[0] is None else np.stack(segments_BxL1),
  )
