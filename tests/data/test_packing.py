"""Packing: each token an input once, each target, few windows."""

import shutil
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

from jaxmerge.data import packing
from jaxmerge.data.cache import SplitTokens
from jaxmerge.data.packing import Packed, best_fit, open_plan
from jaxmerge.data.pipeline import Part, train_batches

END = 0
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)
ROOM = st.integers(1, 17)


def _split(lengths):
  """Documents whose tokens are all different, but for the end of text."""
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  tokens = np.arange(offsets[-1], dtype=np.uint32) + 1
  tokens[offsets[:-1]] = END
  return SplitTokens("train", tokens, offsets, END, Path("unused"))


def _packed(split, length):
  return Packed(split, packing.plan(split.offsets_D1, length), length)


def _counts(row):
  """As training.step.Objective has it."""
  tokens, segments = row
  before, own = segments[:-1], segments[1:]
  return (before > 0) & ((own == before) | (tokens[1:] == END))


@given(LENGTHS, ROOM)
@example([1, 8, 9, 16, 24, 7, 7], 8)
def test_each_token_is_an_input_once_and_each_next_one_a_target(lengths, room):
  split = _split(lengths)
  packed = _packed(split, room)
  stream = split.tokens_T.tolist()
  pairs = []
  for window in range(len(packed)):
    tokens, segments = packed[window]
    inside = segments[:-1] > 0
    counts = _counts(packed[window])
    np.testing.assert_array_equal(inside, counts)
    assert inside.any()
    pairs += zip(tokens[:-1][counts].tolist(), tokens[1:][counts].tolist())
    assert not np.where(segments == 0, tokens, END).any()
  assert sorted(pairs) == sorted(zip(stream, [*stream[1:], END]))
  assert packed.targets == len(pairs)


@given(LENGTHS, ROOM)
def test_a_segment_is_a_piece_of_one_document(lengths, room):
  split = _split(lengths)
  packed = _packed(split, room)
  for window in range(len(packed)):
    inputs, segments = (x[:-1] for x in packed[window])
    for number in range(1, segments.max() + 1):
      [places] = np.nonzero(segments == number)
      assert (np.diff(places) == 1).all()
      assert (np.diff(inputs[places][1:]) == 1).all()
      assert (inputs[places][1:] != END).all()
      # One that begins inside of a document does not follow another's end.
      if inputs[places[0]] != END and places[0]:
        assert segments[places[0] - 1] == 0


@given(st.lists(st.integers(1, 12), max_size=80))
def test_bins_are_those_of_best_fit_decreasing(sizes):
  room = 12
  sizes = np.sort(np.array(sizes, int))[::-1]
  bins, count = best_fit(sizes, room)
  left = []
  for size in sizes:
    fits = [(r, i) for i, r in enumerate(left) if r >= size]
    if not fits:
      left.append(room)
    left[min(fits, default=(room, -1))[1]] -= size
  used = np.bincount(bins, sizes, minlength=count)
  assert (used <= room).all()
  assert sorted(room - used) == sorted(left)


def test_windows_of_packed_documents_are_shuffled_each_epoch():
  packed = _packed(_split([8, 3, 5, 2, 6, 8, 8, 1] * 3), 8)
  batches = train_batches([Part(packed)], batch_size=3, seed=0)
  number = {packed[w].tokens_BxL1.tobytes(): w for w in range(len(packed))}
  stream = batches(0)
  seen = [
    number[row.astype(np.int32).tobytes()]
    for _ in range(len(packed))
    for row in next(stream).tokens_BxL1
  ]
  epochs = np.reshape(seen, (3, len(packed)))
  assert (np.sort(epochs) == np.arange(len(packed))).all()
  assert len({tuple(epoch) for epoch in epochs}) == 3
  batch = next(batches(4))
  np.testing.assert_array_equal(
    batch.segments_BxL1, [packed[w].segments_BxL1 for w in seen[12:15]]
  )


def test_a_plan_is_kept_beside_the_tokens_and_read_again(
  cached, tmp_path, monkeypatch
):
  home = cached.splits["train"].ids_path.parent
  shutil.copytree(home, tmp_path / "tokens")
  train = cached.splits["train"]
  split = SplitTokens(
    "train",
    train.tokens_T,
    train.offsets_D1,
    train.end_of_text,
    tmp_path / "tokens/train.ids",
  )
  made = open_plan(split, cached.identity, 64)
  [directory] = (tmp_path / "tokens").glob("windows-64-*")
  kept = {file.name: file.read_bytes() for file in directory.iterdir()}
  assert isinstance(made.pieces_N, np.memmap)

  def planned(*args):
    raise AssertionError("planned again")

  with monkeypatch.context() as patch:
    patch.setattr(packing, "plan", planned)
    again = open_plan(split, cached.identity, 64)
    np.testing.assert_array_equal(again.pieces_N, made.pieces_N)
    with pytest.raises(AssertionError, match="planned again"):
      open_plan(split, cached.identity, 32)
    file = directory / "pieces.npy"
    changed = bytearray(kept["pieces.npy"])
    changed[-1] ^= 1
    file.write_bytes(changed)
    with pytest.raises(AssertionError, match="planned again"):
      open_plan(split, cached.identity, 64)
  open_plan(split, cached.identity, 64)
  assert {f.name: f.read_bytes() for f in directory.iterdir()} == kept
