"""Training batches: a grain pipeline over windows of cached tokens.

B: sequences of this process in a batch. L: targets in a sequence.
"""

from typing import Any

import grain
import numpy as np

from jaxmerge.data.cache import SplitTokens
from jaxmerge.errors import InputError


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

  Window i is tokens iL to iL + L, both included, so that every token but the
  stream's first is a target once; the last ones that fill no window are not.

  Every epoch is shuffled anew, from the seed. Process p of P takes elements
  p, p + P, ... of one global order, so that the processes' batches together are
  the next `batch_size` elements of it.

  The position (get_state, set_state, an item of an Orbax checkpoint) is one
  number. It means the same windows only with the same tokens, seq_len,
  batch_size, seed and process_count; prefetch may change.

  Args:
    seq_len: L, targets in a sequence.
    batch_size: sequences in a batch over all processes.
    process_index, process_count: the share that this process reads.
    prefetch: batches that a thread reads ahead; 0 reads when asked.

  Returns:
    An iterator of {"tokens": int32[B, L + 1]}, B = batch_size / process_count.

  Raises:
    InputError: fewer windows than a batch.
  """
  count = max(len(tokens.tokens_T) - 1, 0) // seq_len
  if count < batch_size:
    raise InputError(
      f"split {tokens.name!r} has {count} sequences of {seq_len} tokens, "
      f"fewer than one batch of {batch_size}; use more text, or a smaller "
      "seq_len or batch_size"
    )
  windows = np.lib.stride_tricks.sliding_window_view(
    tokens.tokens_T, seq_len + 1
  )[::seq_len]
  ordered = grain.MapDataset.source(windows).seed(seed).shuffle().repeat(None)
  mine = ordered[process_index::process_count]
  batches = mine.batch(
    batch_size // process_count,
    drop_remainder=True,
    batch_fn=lambda rows: {"tokens": np.stack(rows).astype(np.int32)},
  )
  options = grain.ReadOptions(
    num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch
  )
  return iter(batches.to_iter_dataset(options))
