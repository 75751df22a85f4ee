"""Mixtures: exact shares, one tokenizer, caches that plain runs share."""

import collections
import itertools
import shutil
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from jaxmerge.config_reading import read
from jaxmerge.data import cache, mixture
from jaxmerge.data.cache import SplitTokens
from jaxmerge.data.config import DataConfig
from jaxmerge.data.heldout import window_counts
from jaxmerge.data.pipeline import Concatenated, Part, epochs, train_batches
from jaxmerge.data.shares import apportioned, pick, whole_weights
from jaxmerge.errors import InputError

L = 8


@given(
  st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 300)
)
def test_shares_are_exact_in_every_prefix(weights, count):
  seen = collections.Counter()
  for index in range(count):
    part, number = pick(weights, index)
    assert number == seen[part]
    seen[part] += 1
    for k, weight in enumerate(weights):
      share = weight / sum(weights) * (index + 1)
      assert abs(seen[k] - share) < len(weights)


def test_shares_far_from_the_beginning_are_as_exact():
  weights = list(whole_weights({"a": 0.7, "b": 0.3}).values())
  assert weights == [7, 3]
  # Of the first 10^15 elements 7/10 are of part 0.
  before = (7 * 10**14, 3 * 10**14)
  for index in range(10):
    part, number = pick(weights, index)
    assert pick(weights, 10**15 + index) == (part, before[part] + number)


def test_a_total_is_shared_by_the_largest_remainder():
  assert apportioned({"a": 0.5, "b": 0.3, "c": 0.2}, 7) == {
    "a": 4,
    "b": 2,
    "c": 1,
  }
  assert apportioned({"a": 1e-3, "b": 1}, 3) == {"a": 0, "b": 3}


def _split(start, windows):
  tokens = np.arange(start, start + windows * L + 1, dtype=np.uint16)
  offsets = np.array([0, len(tokens)])
  return SplitTokens("train", tokens, offsets, 0, Path("unused"))


# Windows of part a begin below 1000, of b at 1000 or above.
PARTS = [
  Part(Concatenated(_split(0, 20), L), 0.75, "a"),
  Part(Concatenated(_split(1000, 5), L), 0.25, "b"),
]


def _rows(position, count, parts=PARTS, **kwargs):
  arguments = {"batch_size": 4, "seed": 0} | kwargs
  batches = train_batches(parts, **arguments)(position)
  return [b.tokens_BxL1 for b in itertools.islice(batches, count)]


def test_parts_are_mixed_and_each_is_shuffled_anew_every_epoch():
  firsts = np.concatenate(_rows(0, 40))[:, 0]
  for start, windows in ((0, 20), (1000, 5)):
    of_part = firsts[(firsts >= start) & (firsts < start + 1000)]
    numbers = np.reshape((of_part - start) // L, (-1, windows))
    assert (np.sort(numbers) == np.arange(windows)).all()
    assert len({tuple(epoch) for epoch in numbers}) > 1
  for n in range(1, len(firsts)):
    assert abs((firsts[:n] >= 1000).sum() - n / 4) <= len(PARTS)


@pytest.mark.parametrize("shares", [2, 4])
def test_rows_are_the_same_on_any_number_of_processes(shares):
  whole = _rows(0, 12)
  each = [_rows(0, 12, share=i, shares=shares) for i in range(shares)]
  for batch, *found in zip(whole, *each, strict=True):
    np.testing.assert_array_equal(np.concatenate(found), batch)


def test_the_position_is_exact_in_a_mixture():
  np.testing.assert_array_equal(_rows(7, 5), _rows(0, 12)[7:])


def test_a_part_that_is_added_moves_none_of_the_others():
  more = [*PARTS, Part(Concatenated(_split(2000, 9), L), 0.5, "c")]
  firsts = np.concatenate(_rows(0, 30, more))[:, 0]
  before = np.concatenate(_rows(0, 30))[:, 0]
  for start in (0, 1000):
    found, was = (
      f[(f >= start) & (f < start + 1000)].tolist() for f in (firsts, before)
    )
    assert len(found) > 10
    assert found == was[: len(found)]


def test_epochs_are_told_and_a_part_that_is_too_short_refused():
  assert epochs(PARTS, 80) == {"a": 3.0, "b": 4.0}
  with pytest.raises(InputError) as error:
    train_batches(PARTS, batch_size=40, seed=0)
  assert len(error.value.problems) == 2
  assert "a: the train split has 20 sequences, fewer than the 30" in str(
    error.value
  )


@pytest.fixture(scope="module")
def config(texts, text_writer, tmp_path_factory):
  other = text_writer(tmp_path_factory.mktemp("other"), count=60, seed=1)
  for number, file in enumerate(sorted(other.rglob("*.txt"))):
    file.write_text(file.read_text().upper() + str(number))
  return read(
    DataConfig,
    {
      "vocab_size": 420,
      "cache_dir": str(tmp_path_factory.mktemp("mixed")),
      "mixture": {
        "low": {"source": "text_files", "globs": str(texts), "weight": 3},
        "up": {"source": "text_files", "globs": str(other)},
      },
    },
  )


@pytest.fixture(scope="module")
def mixed(config):
  return mixture.open_corpus(config)


def test_parts_share_a_tokenizer_and_their_caches_with_plain_runs(
  config, mixed, tmp_path, monkeypatch
):
  low, up = mixed.parts.values()
  assert low.tokenizer.content == up.tokenizer.content
  # It has learnt from both.
  words = mixed.tokenizer.vocabulary
  assert any(w.isupper() for w in words if len(w) > 3)
  assert any(w.islower() for w in words if len(w) > 3)
  path = tmp_path / "tokenizer.json"
  shutil.copy(low.tokenizer_path, path)
  part = config.corpora["up"]
  plain = DataConfig(
    source=part.source,
    globs=part.globs,
    cache_dir=config.cache_dir,
    tokenizer_path=str(path),
  )

  def built(*args):
    raise AssertionError("tokenized again")

  monkeypatch.setattr(cache, "_build", built)
  assert cache.open_corpus(plain).identity == up.identity
  again = mixture.open_corpus(config)
  assert again.identity == mixed.identity
  assert isinstance(again.parts["up"].splits["train"].tokens_T, np.memmap)


def test_the_shares_are_part_of_the_identity(mixed):
  def identity(weights):
    return mixture.Mixture(mixed.parts, weights).identity

  assert identity({"low": 0.75, "up": 0.25}) == mixed.identity
  assert identity({"low": 0.5, "up": 0.5}) != mixed.identity


def test_held_out_text_is_of_each_part_by_its_weight(mixed):
  for count in (8, 13):
    held = mixed.held_out("search", seq_len=L, max_sequences=count)
    assert len(held.tokens_NxL1) == count
    parts = [held.document_ids[d].split("/")[0] for d in held.document_N]
    ups = np.cumsum([part == "up" for part in parts])
    assert (abs(ups - np.arange(1, count + 1) / 4) <= 2).all()
    assert ups[-1] == round(count / 4)
  known = {
    mixture.document_name(name, d)
    for name, part in mixed.parts.items()
    for d in part.splits["search"].document_ids()
  }
  assert set(held.document_ids) <= known
  for row, name in enumerate(held.document_ids[d] for d in held.document_N):
    text = mixed.tokenizer.decode(held.tokens_NxL1[row].tolist())
    assert text.isupper() == name.startswith("up/"), text


def test_held_out_text_is_bounded_by_the_part_that_has_least(mixed):
  has = {
    name: int(window_counts(part.splits["search"], L).sum())
    for name, part in mixed.parts.items()
  }
  total = min(has["low"] * 4 // 3, has["up"] * 4)
  held = mixed.held_out("search", seq_len=L)
  assert len(held.document_N) == total < sum(has.values())
  some = held.document_ids[:2]
  found = mixed.held_out("search", seq_len=L, documents=some)
  assert sorted(found.document_ids) == sorted(some)


def test_changed_text_is_named_with_its_part(config, tmp_path):
  before = mixture.content_hash(config)
  file = sorted(Path(config.mixture["up"].globs[0]).rglob("*.txt"))[0]
  text = file.read_text()
  try:
    file.write_text("another")
    assert mixture.content_hash(config) != before
    told = mixture.changed_files(config, before)
    assert told.startswith("up: changed: ")
    assert file.name in told
  finally:
    file.write_text(text)


def test_what_is_wrong_with_a_mixture_is_told_at_once():
  with pytest.raises(InputError) as error:
    read(
      DataConfig,
      {
        "source": "python_source",
        "split": "train",
        "mixture": {
          "a": {"source": "sotu", "weight": 0.0},
          "b c": {"source": "", "weight": -1},
        },
      },
    )
  assert error.value.problems == [
    "config.source 'python_source' and config.mixture are both given; leave "
    "one of them empty",
    "config.split means nothing beside config.mixture, whose parts have "
    "their own",
    "config.mixture.b c: a part's name is a letter, and then letters, "
    "digits, _ and -",
    "config.mixture.a.weight must be positive, got 0.0",
    "config.mixture.b c.weight must be positive, got -1.0",
    "config.mixture.b c.source is empty",
  ]
  with pytest.raises(InputError) as error:
    read(DataConfig, {"mixture": {"a": {"weight": float("inf")}, "b": 3}})
  assert error.value.problems == [
    "config.mixture.a.weight must be a finite number, got inf",
    "config.mixture.b must be a section of keys",
    "missing config key config.mixture.a.source",
    "missing config key config.mixture.b.source",
  ]
  with pytest.raises(InputError, match="mixture must be a section of keys"):
    read(DataConfig, {"mixture": "python_source"})
  with pytest.raises(InputError, match="missing config key config.source"):
    read(DataConfig, {"vocab_size": 300})


def test_parts_with_other_tokenizers_are_refused(cached, mixed):
  own, other = str(mixed.parts["up"].tokenizer_path), str(cached.tokenizer_path)

  def told(path, *of_parts):
    parts = {
      f"p{i}": {"source": "sotu", "tokenizer_path": part}
      for i, part in enumerate(of_parts)
    }
    config = read(DataConfig, {"tokenizer_path": path, "mixture": parts})
    return mixture.tokenizer_problems(config)

  assert told(own, own, "") == []
  [problem] = told(own, own, other)
  assert "mixture.p1.tokenizer_path is not that of" in problem
  [problem] = told("", own, "")
  assert "mixture.p0.tokenizer_path goes with the same" in problem


def test_a_part_that_says_nothing_is_not_passed_over():
  part = {"source": "python_source"}
  with pytest.raises(InputError, match="mixture.a says nothing: it needs keys"):
    read(DataConfig, {"mixture": {"a": {}, "b": part}})
  assert not read(DataConfig, {"source": "sotu", "mixture": {}}).mixture
  with pytest.raises(InputError, match="text_feature means nothing beside"):
    read(DataConfig, {"text_feature": "body", "mixture": {"b": part}})
