"""Held-out sequences: every token once, never across a document."""

import json

import numpy as np
import pytest

from jaxmerge.data.cache import SplitTokens
from jaxmerge.data.heldout import held_out
from jaxmerge.errors import InputError

LENGTHS = [1, 4, 5, 9, 2, 12]  # tokens of each document, end of text aside
V_BYTES = np.arange(64, dtype=np.int32) % 7
V_BYTES[0] = 0


def _split(folder, documents, names):
  path = folder / "ids"
  path.write_text("".join(json.dumps(name) + "\n" for name in names))
  return SplitTokens(
    name="search",
    tokens_T=np.array([t for d in documents for t in d], np.uint16),
    offsets_D1=np.cumsum([0, *(len(d) for d in documents)]),
    end_of_text=0,
    ids_path=path,
  )


@pytest.fixture
def split(tmp_path):
  documents, token = [], 1
  for length in LENGTHS:
    documents.append([0, *range(token, token + length)])
    token += length
  return _split(tmp_path, documents, [f"d{i}" for i in range(6)])


def _document_tokens(split, name):
  number = int(name[1:])
  return split.tokens_T[split.offsets_D1[number] : split.offsets_D1[number + 1]]


def test_every_token_is_a_target_once(split):
  held = held_out(split, V_BYTES, seq_len=4)
  targets = held.tokens_NxL1[:, 1:][held.mask_NxL]
  assert sorted(targets) == list(range(1, sum(LENGTHS) + 1))
  assert len(held.mask_NxL) == sum(-(-n // 4) for n in LENGTHS)
  assert held.tokens_NxL1.dtype == np.int32
  assert held.mask_NxL.dtype == bool
  assert held.document_N.dtype == held.bytes_N.dtype == np.int32


def test_a_sequence_lies_in_one_document_and_carries_on(split):
  held = held_out(split, V_BYTES, seq_len=4)
  assert sorted(held.document_ids) == [f"d{i}" for i in range(6)]
  for number, name in enumerate(held.document_ids):
    tokens = _document_tokens(split, name)
    windows = {}
    for row in np.flatnonzero(held.document_N == number):
      count = held.mask_NxL[row].sum()
      assert held.mask_NxL[row, :count].all()
      assert (held.tokens_NxL1[row, count + 1 :] == split.end_of_text).all()
      first = int(held.tokens_NxL1[row, 0])
      start = tokens.tolist().index(first)
      windows[start] = held.tokens_NxL1[row, : count + 1]
    # Every window once: each begins with the last token of the one before.
    assert sorted(windows) == list(range(0, len(tokens) - 1, 4))
    for start, found in windows.items():
      part = tokens[start : start + len(found)]
      np.testing.assert_array_equal(found, part)


def test_bytes_are_those_of_the_targets(split):
  held = held_out(split, V_BYTES, seq_len=4)
  assert held.bytes_N.sum() == V_BYTES[1 : sum(LENGTHS) + 1].sum()
  for row in range(len(held.bytes_N)):
    targets = held.tokens_NxL1[row, 1:][held.mask_NxL[row]]
    assert held.bytes_N[row] == V_BYTES[targets].sum()


def test_fewer_sequences_are_the_head_of_more(split):
  whole = held_out(split, V_BYTES, seq_len=4)
  for limit in (1, 3, 6, 8, 100):
    some = held_out(split, V_BYTES, seq_len=4, max_sequences=limit)
    rows = min(limit, len(whole.mask_NxL))
    np.testing.assert_array_equal(some.tokens_NxL1, whole.tokens_NxL1[:rows])
    np.testing.assert_array_equal(some.document_N, whole.document_N[:rows])
    np.testing.assert_array_equal(some.bytes_N, whole.bytes_N[:rows])
    assert some.document_ids == whole.document_ids[: len(some.document_ids)]


def _many(tmp_path, lengths, names=None):
  """A split whose every token says its place in its document."""
  names = names or [f"doc{i}" for i in range(len(lengths))]
  documents = [[0, *range(1, length + 1)] for length in lengths]
  return _split(tmp_path, documents, names)


def _windows(held):
  """(document, window) of each sequence."""
  starts_N = held.tokens_NxL1[:, 0] // 8
  return [
    (held.document_ids[d], int(w)) for d, w in zip(held.document_N, starts_N)
  ]


def test_a_sample_is_of_whole_documents_and_not_of_their_heads(tmp_path):
  lengths = [8] * 40 + [800] * 4  # 440 windows, nine tenths of four documents
  split = _many(tmp_path, lengths)
  held = held_out(split, np.ones(801, int), seq_len=8, max_sequences=110)
  assert len(set(_windows(held))) == 110
  firsts = sum(window == 0 for _, window in _windows(held))
  assert firsts <= 20  # 11 are to be expected; all 44 would come first
  places = [window for name, window in _windows(held) if window]
  assert 40 < np.mean(places) < 60
  # A quarter of the sample is as much of a sample.
  quarter = [window for _, window in _windows(held)[:28] if window]
  assert 30 < np.mean(quarter) < 70


def test_the_same_windows_whatever_else_the_split_holds(tmp_path):
  lengths = [80, 40, 160]
  alone = held_out(_many(tmp_path, lengths), np.ones(161, int), seq_len=8)
  more = held_out(
    _many(
      tmp_path,
      [24, *reversed(lengths)],
      ["another", "doc2", "doc1", "doc0"],
    ),
    np.ones(161, int),
    seq_len=8,
  )
  common = [w for w in _windows(more) if w[0] != "another"]
  assert common == _windows(alone)


def test_more_than_memory_holds_is_refused(split):
  with pytest.raises(InputError, match="of memory, of which"):
    held_out(split, V_BYTES, seq_len=10**12)


def test_bytes_add_up_to_the_texts(texts, cached):
  for name in ("search", "report", "validation"):
    split = cached.splits[name]
    held = held_out(split, cached.tokenizer.bytes_per_token_V, seq_len=32)
    for number, document in enumerate(held.document_ids):
      size = held.bytes_N[held.document_N == number].sum()
      assert size == (texts / document).stat().st_size
    assert len(held.document_ids) == len(split.document_ids())
