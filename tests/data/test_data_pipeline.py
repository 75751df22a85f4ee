"""Training batches: nothing lost, one global order, an exact position."""

import itertools
from pathlib import Path

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxmerge.data.cache import SplitTokens
from jaxmerge.data.pipeline import train_iterator
from jaxmerge.errors import InputError

L = 8


def _split(count, dtype=np.uint16):
  return SplitTokens(
    name="train",
    tokens_T=np.arange(count, dtype=dtype),
    offsets_D1=np.array([0, count]),
    end_of_text=0,
    ids_path=Path("unused"),
  )


SPLIT = _split(40 * L + 4)  # 40 windows, and 3 tokens that fill none


def _iterator(**kwargs):
  arguments = {"seq_len": L, "batch_size": 4, "seed": 0} | kwargs
  return train_iterator(SPLIT, **arguments)


def _take(iterator, count):
  return [batch["tokens"] for batch in itertools.islice(iterator, count)]


def _starts(batches):
  """Which windows the batches hold, in order."""
  return [int(row[0]) // L for batch in batches for row in batch]


def test_windows_lose_no_token():
  [batch] = _take(_iterator(batch_size=40), 1)
  assert batch.shape == (40, L + 1)
  assert batch.dtype == np.int32
  rows = batch[np.argsort(batch[:, 0])]
  np.testing.assert_array_equal(rows[:, 1:].ravel(), np.arange(1, 40 * L + 1))
  np.testing.assert_array_equal(rows[1:, 0], rows[:-1, -1])


@pytest.mark.parametrize("count", [0, 1, L, L + 1])
def test_a_window_needs_a_token_more_than_it_has_targets(count):
  arguments = {"seq_len": L, "batch_size": 1, "seed": 0}
  if count > L:
    [batch] = _take(train_iterator(_split(count), **arguments), 1)
    assert batch.tolist() == [list(range(L + 1))]
  else:
    with pytest.raises(InputError, match="has 0 sequences"):
      train_iterator(_split(count), **arguments)


def test_batches_and_epochs():
  batches = _take(_iterator(), 30)
  assert {(b.shape, b.dtype.name) for b in batches} == {((4, L + 1), "int32")}
  starts = _starts(batches)
  epochs = [starts[:40], starts[40:80], starts[80:]]
  assert [sorted(epoch) for epoch in epochs] == [list(range(40))] * 3
  assert epochs[0] != epochs[1] != epochs[2]
  assert epochs[0] != sorted(epochs[0])


def test_real_tokens_come_out(cached):
  train = cached.splits["train"]
  batch = next(train_iterator(train, seq_len=16, batch_size=2, seed=1))
  stream = train.tokens_T.astype(np.int32)
  windows = np.lib.stride_tricks.sliding_window_view(stream, 17)[::16]
  for row in batch["tokens"]:
    assert (windows == row).all(axis=1).any()


def test_a_batch_may_cross_epochs():
  starts = _starts(_take(_iterator(batch_size=12), 10))
  assert sorted(starts) == sorted(list(range(40)) * 3)


def test_the_seed_decides():
  assert _starts(_take(_iterator(), 5)) == _starts(_take(_iterator(), 5))
  assert _starts(_take(_iterator(), 5)) != _starts(_take(_iterator(seed=1), 5))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_interleave_to_the_global_order(count):
  whole = _starts(_take(_iterator(), 25))
  shares = [
    _starts(_take(_iterator(process_index=i, process_count=count), 25))
    for i in range(count)
  ]
  assert [len(share) for share in shares] == [100 // count] * count
  together = [start for group in zip(*shares) for start in group]
  assert together == whole


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("before", [0, 3, 17])
def test_the_position_is_exact(prefetch, before):
  iterator = _iterator(prefetch=prefetch)
  _take(iterator, before)
  state = iterator.get_state()
  expected = _starts(_take(iterator, 6))
  fresh = _iterator(prefetch=3 - prefetch)
  fresh.set_state(state)
  assert _starts(_take(fresh, 6)) == expected
  iterator.set_state(state)
  assert _starts(_take(iterator, 6)) == expected


def test_the_position_in_an_orbax_checkpoint(tmp_path):
  """Also when the iterator goes on straight after an asynchronous save."""
  iterator = _iterator()
  _take(iterator, 5)
  with ocp.CheckpointManager(tmp_path) as manager:
    arguments = ocp.args.Composite(
      state=ocp.args.StandardSave({"step": np.zeros(100_000)}),
      data=grain.checkpoint.CheckpointSave(iterator),
    )
    manager.save(5, args=arguments)
    expected = _starts(_take(iterator, 12))
    manager.wait_until_finished()
  restored = _iterator()
  _take(restored, 2)
  with ocp.CheckpointManager(tmp_path) as manager:
    manager.restore(
      5,
      args=ocp.args.Composite(
        data=grain.checkpoint.CheckpointRestore(restored)
      ),
    )
  assert _starts(_take(restored, 12)) == expected


def test_fewer_windows_than_a_batch():
  with pytest.raises(InputError, match="40 sequences of 8 tokens, fewer than"):
    _iterator(batch_size=41)
