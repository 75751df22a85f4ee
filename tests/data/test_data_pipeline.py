"""Training batches: nothing lost, one global order, an exact position."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from jaxmerge.data.cache import SplitTokens
from jaxmerge.data.pipeline import Concatenated, Part, train_batches
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


def _batches(position=0, **kwargs):
  arguments = {"batch_size": 4, "seed": 0} | kwargs
  batches = train_batches([Part(Concatenated(SPLIT, L))], **arguments)(position)
  return (batch.tokens_BxL1 for batch in batches)


def _take(batches, count):
  return list(itertools.islice(batches, count))


def _starts(batches):
  """Which windows the batches hold, in order."""
  return [int(row[0]) // L for batch in batches for row in batch]


def test_windows_lose_no_token():
  [batch] = _take(_batches(batch_size=40), 1)
  assert batch.shape == (40, L + 1)
  assert batch.dtype == np.int32
  rows = batch[np.argsort(batch[:, 0])]
  np.testing.assert_array_equal(rows[:, 1:].ravel(), np.arange(1, 40 * L + 1))
  np.testing.assert_array_equal(rows[1:, 0], rows[:-1, -1])


@pytest.mark.parametrize("count", [0, 1, L, L + 1])
def test_a_window_needs_a_token_more_than_it_has_targets(count):
  windows = Concatenated(_split(count), L)
  if count > L:
    [batch] = _take(train_batches([Part(windows)], batch_size=1, seed=0)(0), 1)
    assert batch.tokens_BxL1.tolist() == [list(range(L + 1))]
    assert batch.segments_BxL1 is None
  else:
    with pytest.raises(InputError, match="has 0 sequences"):
      train_batches([Part(windows)], batch_size=1, seed=0)


def test_batches_and_epochs():
  batches = _take(_batches(), 30)
  assert {(b.shape, b.dtype.name) for b in batches} == {((4, L + 1), "int32")}
  starts = _starts(batches)
  epochs = [starts[:40], starts[40:80], starts[80:]]
  assert [sorted(epoch) for epoch in epochs] == [list(range(40))] * 3
  assert epochs[0] != epochs[1] != epochs[2]
  assert epochs[0] != sorted(epochs[0])


def test_real_tokens_come_out(cached):
  train = cached.splits["train"]
  windows = Concatenated(train, 16)
  batch = next(
    train_batches([Part(windows)], batch_size=2, seed=1)(0)
  ).tokens_BxL1
  stream = train.tokens_T.astype(np.int32)
  expected = np.lib.stride_tricks.sliding_window_view(stream, 17)[::16]
  for row in batch:
    assert (expected == row).all(axis=1).any()


def test_a_batch_may_cross_epochs():
  starts = _starts(_take(_batches(batch_size=12), 10))
  assert sorted(starts) == sorted(list(range(40)) * 3)


def test_the_seed_decides():
  assert _starts(_take(_batches(), 5)) == _starts(_take(_batches(), 5))
  assert _starts(_take(_batches(), 5)) != _starts(_take(_batches(seed=1), 5))


@pytest.mark.parametrize("count", [2, 4])
def test_shares_together_are_the_batch_row_by_row(count):
  whole = _take(_batches(), 25)
  shares = [_take(_batches(share=i, shares=count), 25) for i in range(count)]
  for batch, *parts in zip(whole, *shares):
    np.testing.assert_array_equal(np.concatenate(parts), batch)


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("position", [0, 3, 17])
def test_the_position_is_exact(prefetch, position):
  expected = _starts(_take(_batches(), 30)[position:])
  found = _batches(position, prefetch=prefetch)
  assert _starts(_take(found, 30 - position)) == expected


def test_fewer_windows_than_a_batch():
  with pytest.raises(InputError, match="40 sequences, fewer than"):
    _batches(batch_size=41)
