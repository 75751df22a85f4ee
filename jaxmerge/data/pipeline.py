"""Training batches: a grain pipeline over windows of cached tokens.

B: sequences of this process in a batch. L: targets in a sequence.
"""

from typing import Any, SupportsIndex

import grain
import numpy as np

from jaxmerge.data.token_files import SplitTokens
from jaxmerge.errors import InputError


class Windows:
  """Windows of a token stream as a random-access source for grain.

  Window i is tokens iL to iL + L, both included, so that every token but the
  stream's first is a target once; the last ones that fill no window are not.
  """

  def __init__(self, tokens_T: np.ndarray, seq_len: int):
    self._tokens_T = tokens_T
    self._seq_len = seq_len

  def __len__(self) -> int:
    return max(len(self._tokens_T) - 1, 0) // self._seq_len

  def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
    """Returns {"tokens": int32[L + 1]}."""
    start = index.__index__() * self._seq_len
    window = self._tokens_T[start : start + self._seq_len + 1]
    return {"tokens": window.astype(np.int32)}


def train_iterator(
  tokens: SplitTokens,
  *,
  seq_len: int,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  prefetch: int = 2,
) -> grain.DatasetIterator[dict[str, Any]]:
  """An endless, restorable iterator of batches.

  Every epoch is shuffled anew, from the seed. Process p of P takes elements
  p, p + P, ... of one global order, so that the processes' batches together are
  the next `batch_size` elements of it.

  The position (get_state, set_state, an item of an Orbax checkpoint) is one
  number. It means the same windows only with the same tokens, seq_len,
  batch_size, seed and process_count; prefetch may change.

  Args:
    tokens: the split to train on.
    seq_len: L, targets in a sequence.
    batch_size: sequences in a batch over all processes.
    seed: of the order.
    process_index, process_count: the share that this process reads.
    prefetch: batches that a thread reads ahead; 0 reads when asked.

  Returns:
    grain.DatasetIterator of {"tokens": int32[B, L + 1]}, with
    B = batch_size / process_count.

  Raises:
    InputError: fewer windows than a batch.
  """
  source = Windows(tokens.tokens_T, seq_len)
  if len(source) < batch_size:
    raise InputError(
      f"split {tokens.name!r} has {len(source)} sequences of {seq_len} tokens, "
      f"fewer than one batch of {batch_size}; use more text, or a smaller "
      "seq_len or batch_size"
    )
  ordered = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
  mine = ordered[process_index::process_count]
  batches = mine.batch(batch_size // process_count, drop_remainder=True)
  options = grain.ReadOptions(
    num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch
  )
  return iter(batches.to_iter_dataset(options))
