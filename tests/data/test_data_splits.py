"""Splits: disjoint, stable, about as large as asked."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.data import splits
from jaxmerge.data.corpora import Corpus, Document
from jaxmerge.data.documents import Skipped
from jaxmerge.data.splits import (
  FRACTIONS,
  SPLIT_NAMES,
  assigned_documents,
  check_filled,
  parts,
  split_of,
)
from jaxmerge.errors import InputError


class _Records(list):
  def __getitems__(self, indices):
    return [self[i] for i in indices]


def _corpus(texts):
  records = _Records(
    {"id": name.encode(), "text": text.encode()} for name, text in texts.items()
  )
  return Corpus(
    source="made",
    identity="0",
    skipped=Skipped(),
    directory="",
    records=records,
    size=len(records),
    text_feature="text",
    id_feature="id",
  )


@pytest.mark.parametrize("shares", [FRACTIONS.values(), (0.4, 0.3, 0.2, 0.1)])
def test_shares_are_as_asked(monkeypatch, shares):
  fractions = dict(zip(SPLIT_NAMES, shares))
  monkeypatch.setattr(splits, "FRACTIONS", fractions)
  assert sum(FRACTIONS.values()) == pytest.approx(1)
  counts = Counter(split_of(f"doc {i}") for i in range(20_000))
  for name, fraction in fractions.items():
    assert counts[name] / 20_000 == pytest.approx(fraction, abs=0.01)


def test_the_rule_is_frozen():
  """Written down once: a change of rule must change splits.VERSION."""
  names = [split_of(f"doc {i}") for i in range(40)]
  others = {i: name for i, name in enumerate(names) if name != "train"}
  assert others == {
    6: "report",
    20: "validation",
    36: "validation",
    37: "search",
    38: "report",
  }


def test_every_document_is_in_one_split_and_others_do_not_move_it():
  texts = {f"doc {i}": f"text {i}" for i in range(200)}
  whole = {d.id: s for s, d in assigned_documents(_corpus(texts), Skipped())}
  assert whole.keys() == texts.keys()
  fewer = dict(list(texts.items())[:100])
  part = {d.id: s for s, d in assigned_documents(_corpus(fewer), Skipped())}
  assert part.items() <= whole.items()


def test_equal_texts_are_not_in_two_splits():
  texts = {f"doc {i}": f"text {i % 25}" for i in range(200)}
  seen = Counter(
    d.text for _, d in assigned_documents(_corpus(texts), Skipped())
  )
  assert len(seen) == 25
  assert set(seen.values()) == {1}


def test_one_giant_document_fills_all_splits():
  text = "".join(f"Line {i} of the play.\n" for i in range(20_000))
  pairs = list(assigned_documents(_corpus({"play": text}), Skipped()))
  documents = [document for _, document in pairs]
  assert "".join(d.text for d in documents) == text
  assert [d.id for d in documents] == [f"play#{i}" for i in range(len(pairs))]
  assert {name for name, _ in pairs} == set(SPLIT_NAMES)
  assert all(d.text.endswith("\n") for d in documents)


def test_twenty_documents_are_never_cut():
  texts = {f"doc {i}": f"{i} line\n" * 5_000 for i in range(20)}
  documents = [d for _, d in assigned_documents(_corpus(texts), Skipped())]
  assert {d.id: d.text for d in documents} == texts
  del texts["doc 0"]
  cut = [d for _, d in assigned_documents(_corpus(texts), Skipped())]
  assert len(cut) > 19


@given(st.text(alphabet="ab\n\r猫🐈", max_size=80), st.integers(4, 30))
def test_parts_are_short_and_lose_nothing(text, limit):
  found = list(parts(Document("x", text), limit))
  assert "".join(part.text for part in found) == text
  assert len({part.id for part in found}) == len(found)
  assert all(len(part.text.encode()) <= limit for part in found)
  assert text == "" or all(part.text for part in found)


def test_empty_splits_are_named():
  with pytest.raises(InputError, match="3 different .* into: search, report"):
    check_filled(
      _corpus({"a": "1", "b": "2", "c": "3"}),
      {"train": 2, "search": 0, "report": 0, "validation": 1},
      Skipped(),
    )
