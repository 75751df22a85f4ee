"""A tokenizer.json, or a byte-level BPE trained on a corpus.

V: size of the vocabulary.
"""

import contextlib
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxmerge.data.tokenizers.protocol import (
  END_OF_TEXT,
  SPACE,
  find_end_of_text,
  piece_bytes,
)
from jaxmerge.errors import InputError
from jaxmerge.reading import read_json

TOKENIZER_JSON = "tokenizer.json"
SMALLEST_VOCABULARY = 257  # every byte, and the end of text
SAMPLE_BYTES = 5_000_000
# Names of real tokens are shorter; the library falls over those of a megabyte.
_LONGEST_PIECE = 1000
_MOST_CHARACTERS = 4_000_000
# How many ids a small file may leave unused, and times that a text may become
# longer before it is tokenized.
_MOST_IDS = 2**20
_LONGER = 1000
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


class HuggingFaceTokenizer:
  """A `tokenizers.Tokenizer` that neither cuts nor pads."""

  file_name = TOKENIZER_JSON

  def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    self._tokenizer = tokenizer
    self.content = tokenizer.to_str().encode()
    self.hash = hashlib.sha256(self.content).hexdigest()
    self.vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    self.size = max(self.vocabulary.values(), default=-1) + 1

  @classmethod
  def parse(cls, text: str, name: object) -> "HuggingFaceTokenizer":
    """Reads a tokenizer.json.

    Raises:
      InputError: it is none; the message calls it `name`.
    """
    with _refusals(f"{name} is not a tokenizer.json"):
      _check_bounds(read_json(text), len(text))
      return cls(tokenizers.Tokenizer.from_str(text))

  @functools.cached_property
  def end_of_text(self) -> int:
    template = json.loads(self.content)["post_processor"] or {}
    names = list(template.get("special_tokens", ()))
    other = self.vocabulary.get(names[0]) if len(names) == 1 else None
    return find_end_of_text(self.vocabulary, other)

  @functools.cached_property
  def spelling(self) -> str:
    """Tells how tokens spell bytes: "bytes", "spaces" (SPACE for one) or ""."""
    for part in _parts(json.loads(self.content)["decoder"]):
      if part["type"] == "ByteLevel":
        return "bytes"
      space = part.get("replacement") or part.get("pattern")
      if space in (SPACE, {"String": SPACE}):
        return "spaces"
    return ""

  @functools.cached_property
  def bytes_per_token_V(self) -> np.ndarray:
    spells_bytes = self.spelling == "bytes"
    bytes_V = np.zeros(self.size, np.int32)
    for token, number in self.vocabulary.items():
      # One character of byte-level BPE is one byte.
      is_byte = _BYTE_PIECE.fullmatch(token)
      size = (
        len(token) if spells_bytes else 1 if is_byte else piece_bytes(token)
      )
      bytes_V[number] = size
    for number, added in self._tokenizer.get_added_tokens_decoder().items():
      text = added.content
      length = len(text.encode()) if spells_bytes else piece_bytes(text)
      bytes_V[number] = 0 if added.special else length
    return bytes_V

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    encode = self._tokenizer.encode_batch_fast
    with _refusals("a text cannot be tokenized"):
      return [part.ids for part in encode(texts, add_special_tokens=False)]

  def decode(self, ids: Sequence[int]) -> str:
    with _refusals("the text of tokens cannot be told"):
      return self._tokenizer.decode(ids)

  def save(self, directory: Path) -> None:
    self._tokenizer.save(str(directory / self.file_name))


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
  """Makes an InputError of what the library raises: anything, and panics."""
  try:
    yield
  except Exception as error:
    raise InputError(f"{what}: {error}") from error
  except BaseException as error:
    if type(error).__name__ != "PanicException":  # the library exports it not
      raise
    raise InputError(f"{what}: {error}") from error


def _check_bounds(value: Any, size: int) -> None:
  """Refuses what the library would take memory for, or the stack, without end.

  Args:
    value: of a tokenizer.json.
    size: of its text.

  Raises:
    ValueError: says what is too large.
  """
  if not isinstance(value, dict):
    raise ValueError("it is not a JSON object")
  model, added = value.pop("model", None), value.pop("added_tokens", None)
  vocabulary = model.get("vocab") if isinstance(model, dict) else None
  named = [t for t in added or () if isinstance(t, dict)]
  pieces = [str(token.get("content")) for token in named]
  numbers = [token.get("id") for token in named]
  if isinstance(vocabulary, dict):
    pieces += vocabulary
    numbers += vocabulary.values()
  elif isinstance(vocabulary, list):  # the library makes a tree of these
    pieces += [str(pair[0]) for pair in vocabulary if pair]
    if sum(map(len, pieces)) > _MOST_CHARACTERS:
      raise ValueError("its tokens are too long together")
  if max(map(len, pieces), default=0) > _LONGEST_PIECE:
    raise ValueError(f"a token is longer than {_LONGEST_PIECE} characters")
  highest = max((n for n in numbers if isinstance(n, int)), default=0)
  if highest > max(size, _MOST_IDS):
    raise ValueError(f"a token has the id {highest}")
  texts = (p.get("content") or p.get("prepend") for p in _parts(value))
  if math.prod(len(t) for t in texts if t and isinstance(t, str)) > _LONGER:
    raise ValueError("its replacements make a text too long")


def _parts(value: Any) -> Iterator[dict[str, Any]]:
  """The parts that have a type, at any depth of a tokenizer's JSON."""
  if isinstance(value, dict):
    if "type" in value:
      yield value
    value = list(value.values())
  if isinstance(value, list):
    for item in value:
      yield from _parts(item)


def first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
  """Cuts texts off behind so many bytes of UTF-8."""
  left = limit
  for text in texts:
    content = text.encode()
    # A character that the limit would cut in two is dropped.
    yield content[:left].decode(errors="ignore")
    left -= len(content)
    if left <= 0:
      return


def train_tokenizer(
  texts: Iterable[str], *, vocab_size: int, sample_bytes: int = SAMPLE_BYTES
) -> HuggingFaceTokenizer:
  """Trains a byte-level BPE; the same texts give the same tokenizer.

  `<|endoftext|>` has id 0, the 256 bytes come next. It learns from the first
  `sample_bytes`; a short text gives fewer tokens than `vocab_size`.
  """
  if vocab_size < SMALLEST_VOCABULARY:
    raise InputError(
      f"vocab_size must be at least {SMALLEST_VOCABULARY} "
      f"(256 bytes and the end of text), not {vocab_size}"
    )
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(first_bytes(texts, sample_bytes), trainer)
  return HuggingFaceTokenizer(tokenizer)
