"""The tokenizer: deterministic, exact in bytes, strict about what it loads."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from jaxmerge.data.tokenizers.hugging_face import train_tokenizer
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.data.tokenizers.protocol import END_OF_TEXT
from jaxmerge.errors import InputError
from tests.helpers import bounded_memory

TEXTS = ["the cat sat on the mat, the cat sat. naïve 猫 🐈\n"] * 20
SMALL = train_tokenizer(TEXTS, vocab_size=280)


def _ids(tokenizer, text):
  [ids] = tokenizer.encode_batch([text])
  return ids


def test_end_of_text_is_first_and_bytes_follow():
  assert SMALL.end_of_text == 0
  assert SMALL.size == 280
  bytes_V = SMALL.bytes_per_token_V
  assert bytes_V.shape == (280,)
  assert bytes_V.dtype == np.int32
  assert bytes_V[0] == 0
  assert (bytes_V[1:257] == 1).all()
  assert (bytes_V[257:] > 1).all()


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_bytes_add_up(text):
  ids = _ids(SMALL, text)
  assert SMALL.bytes_per_token_V[ids].sum() == len(text.encode())
  assert SMALL.decode(ids) == text


def test_the_name_of_a_special_token_in_a_text_is_text(tmp_path):
  text = f"a{END_OF_TEXT}b"
  SMALL.save(tmp_path)
  for tokenizer in (SMALL, load_tokenizer(tmp_path / "tokenizer.json")):
    ids = _ids(tokenizer, text)
    assert 0 not in ids
    assert tokenizer.bytes_per_token_V[ids].sum() == len(text)


def test_training_is_deterministic_over_processes():
  program = f"""
from jaxmerge.data.tokenizers.hugging_face import train_tokenizer
print(train_tokenizer({TEXTS!r}, vocab_size=280).hash)
"""
  other = subprocess.run(
    [sys.executable, "-c", program], check=True, capture_output=True, text=True
  )
  assert other.stdout.strip() == SMALL.hash
  more = train_tokenizer(TEXTS, vocab_size=281)
  assert more.hash != SMALL.hash


def test_only_the_sample_is_learnt_from():
  def texts():
    yield "aaaa bbbb " * 10
    yield "xyz"
    raise AssertionError("read past the sample")

  short = train_tokenizer(texts(), vocab_size=300, sample_bytes=101)
  alone = train_tokenizer(["aaaa bbbb " * 10], vocab_size=300)
  assert alone.hash == short.hash
  longer = train_tokenizer(["aaaa bbbb " * 10, "xyz"], vocab_size=300)
  assert alone.hash != longer.hash


def test_too_small_a_vocabulary():
  with pytest.raises(InputError, match="at least 257"):
    train_tokenizer(TEXTS, vocab_size=256)


def test_a_saved_tokenizer_is_the_same(tmp_path):
  SMALL.save(tmp_path)
  loaded = load_tokenizer(tmp_path / "tokenizer.json")
  assert loaded.hash == SMALL.hash
  assert _ids(loaded, TEXTS[0]) == _ids(SMALL, TEXTS[0])


def test_stored_truncation_and_padding_are_switched_off(tmp_path):
  tokenizer = tokenizers.Tokenizer.from_str(SMALL.content.decode())
  tokenizer.enable_truncation(3)
  tokenizer.enable_padding(length=64)
  tokenizer.save(str(tmp_path / "t.json"))
  loaded = load_tokenizer(tmp_path / "t.json")
  assert _ids(loaded, TEXTS[0]) == _ids(SMALL, TEXTS[0])


def test_other_names_of_the_end_and_added_words(tmp_path):
  tokenizer = tokenizers.Tokenizer(
    models.BPE(vocab={"a": 0, "Ġ": 1}, merges=[])
  )
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_tokens(["naïve"])
  tokenizer.add_special_tokens(["<|end_of_text|>"])
  tokenizer.save(str(tmp_path / "t.json"))
  loaded = load_tokenizer(tmp_path / "t.json")
  assert loaded.end_of_text == 3
  assert loaded.bytes_per_token_V.tolist() == [1, 1, len("naïve".encode()), 0]


def _without_end():
  content = json.loads(SMALL.content)
  content["added_tokens"] = []
  del content["model"]["vocab"][END_OF_TEXT]
  return json.dumps(content)


def _not_byte_level():
  content = json.loads(SMALL.content)
  content["decoder"] = {"type": "Fuse"}
  return json.dumps(content)


def _changed(**changes):
  return json.dumps(json.loads(SMALL.content) | changes)


def _replaced(times):
  replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
  return {"type": "Sequence", "normalizers": [replace] * times}


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}
# What the library ends the process for, or takes gigabytes.
BOMBS = {
  "an id": (
    {"model": {"type": "BPE", "vocab": {"a": 2**32 - 2}, "merges": []}},
    "id 4294967294",
  ),
  "an added id": (
    {"added_tokens": [{"id": 2**31, "content": "a"}]},
    "the id 2",
  ),
  "a token": (
    {"model": UNIGRAM | {"vocab": [["a" * 10**6, 0.0]]}},
    "longer than",
  ),
  "tokens": (
    {"model": UNIGRAM | {"vocab": [["a" * 999, 0.0]] * 5000}},
    "together",
  ),
  "replacements": ({"normalizer": _replaced(9)}, "a text too long"),
  "a panic": (
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////"}},
    "Precompiled",
  ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_the_library_does_not_survive_is_refused(tmp_path, name):
  changes, message = BOMBS[name]
  path = tmp_path / "tokenizer.json"
  path.write_text(_changed(**changes))
  with (
    bounded_memory(path.stat().st_size),
    pytest.raises(InputError, match=message),
  ):
    load_tokenizer(path)


def test_a_text_that_a_tokenizer_fails_at_is_refused(tmp_path):
  pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "invert": False}
  pattern |= {"behavior": "Isolated"}
  path = tmp_path / "tokenizer.json"
  path.write_text(_changed(pre_tokenizer=pattern))
  tokenizer = load_tokenizer(path)
  assert tokenizer.encode_batch(["b"])
  with pytest.raises(InputError, match="a text cannot be tokenized"):
    tokenizer.encode_batch(["a" * 40 + "b"])


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "cannot read tokenizer"),
    ("{}", "is not a tokenizer.json"),
    ("nonsense", "is not a tokenizer.json"),
    (_without_end(), "no end-of-text token"),
    (_not_byte_level(), "is not byte-level"),
  ],
)
def test_what_is_refused(tmp_path, content, message):
  path = tmp_path / "tokenizer.json"
  if content is not None:
    path.write_text(content)
  with pytest.raises(InputError, match=message):
    load_tokenizer(path)
