"""Byte-level BPE, trained on a corpus, or any loaded from a tokenizer.json.

V: size of the vocabulary.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxmerge.data.sentencepiece_model import SPACE
from jaxmerge.errors import InputError
from jaxmerge.files import expanded
from jaxmerge.reading import read_file

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # every byte, and the end of text
SAMPLE_BYTES = 5_000_000
_ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
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
) -> tokenizers.Tokenizer:
  """Trains a byte-level BPE; the same texts give the same tokenizer.

  `<|endoftext|>` has id 0, the 256 bytes come next.

  Args:
    texts: documents; the first `sample_bytes` of them are used.
    vocab_size: tokens in all, at most; a short text gives fewer.
    sample_bytes: UTF-8 bytes to learn from.

  Raises:
    InputError: vocab_size is below 257.
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
  sample = _first_bytes(texts, sample_bytes)
  tokenizer.train_from_iterator(sample, trainer)
  return _for_text(tokenizer)


def _for_text(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """Nothing is cut or padded; a special token's name in a text is just text."""
  tokenizer.no_truncation()
  tokenizer.no_padding()
  tokenizer.encode_special_tokens = True
  return tokenizer


def _parts(value: Any) -> Iterator[dict[str, Any]]:
  """The parts that have a type, at any depth of a tokenizer's JSON."""
  if isinstance(value, dict):
    if "type" in value:
      yield value
    value = list(value.values())
  if isinstance(value, list):
    for item in value:
      yield from _parts(item)


def _spelling(tokenizer: tokenizers.Tokenizer) -> str:
  """How tokens spell bytes: "bytes", "spaces" (SPACE for one) or ""."""
  for part in _parts(json.loads(tokenizer.to_str())["decoder"]):
    if part["type"] == "ByteLevel":
      return "bytes"
    space = part.get("replacement") or part.get("pattern")
    if space in (SPACE, {"String": SPACE}):
      return "spaces"
  return ""


def load_tokenizer(path: str | os.PathLike[str]) -> tokenizers.Tokenizer:
  """Loads a tokenizer.json whose tokens say what bytes they stand for.

  They do in a byte-level one, as of GPT-2, Llama 3, Qwen or SmolLM, and in one
  made from a SentencePiece model, as of Llama 2.

  Raises:
    InputError: no such file, not a tokenizer, no end-of-text token, or of
      another kind (the bytes that a token stands for could not be counted).
  """
  path = expanded(os.fspath(path))
  try:
    content = read_file(path).decode("utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or error
    raise InputError(f"cannot read tokenizer {path}: {reason}") from error
  try:
    tokenizer = tokenizers.Tokenizer.from_str(content)
  except Exception as error:  # the library raises plain Exception
    raise InputError(f"{path} is not a tokenizer.json: {error}") from error
  if not _spelling(tokenizer):
    raise InputError(
      f"tokenizer {path} is not byte-level nor made from a SentencePiece "
      "model, so that bits per byte cannot be counted; use a byte-level BPE"
    )
  end_of_text_id(tokenizer)
  return _for_text(tokenizer)


def end_of_text_id(tokenizer: tokenizers.Tokenizer) -> int:
  """The id of the token that stands before every document.

  That is one of the known names, else the only special token that the
  tokenizer's template knows.

  Raises:
    InputError: the tokenizer has neither.
  """
  for name in _ENDS_OF_TEXT:
    number = tokenizer.token_to_id(name)
    if number is not None:
      return number
  template = json.loads(tokenizer.to_str())["post_processor"] or {}
  names = list(template.get("special_tokens", ()))
  number = tokenizer.token_to_id(names[0]) if len(names) == 1 else None
  if number is not None:
    return number
  raise InputError(
    f"the tokenizer has no end-of-text token ({', '.join(_ENDS_OF_TEXT)})"
  )


def vocabulary_size(tokenizer: tokenizers.Tokenizer) -> int:
  """One more than the largest id: ids may have gaps."""
  return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def token_bytes(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
  """How many UTF-8 bytes of text each token stands for.

  Over the tokens of a text they add up to its length, if the tokenizer changes
  no text; else (NFC normalisation, a space put in front) to the length of the
  changed text. What a SentencePiece model has no piece for counts as nothing.

  Returns:
    int32[V]; 0 for special tokens and for ids without a token.
  """
  spells_bytes = _spelling(tokenizer) == "bytes"
  vocabulary = tokenizer.get_vocab(with_added_tokens=True)
  bytes_V = np.zeros(vocabulary_size(tokenizer), np.int32)
  for token, number in vocabulary.items():
    # byte-level: one character is one byte
    bytes_V[number] = len(token) if spells_bytes else _piece_bytes(token)
  for number, added in tokenizer.get_added_tokens_decoder().items():
    text = added.content if spells_bytes else added.content.replace(SPACE, " ")
    bytes_V[number] = 0 if added.special else len(text.encode())
  return bytes_V


def _piece_bytes(piece: str) -> int:
  """A byte is written as in <0x0A>, a space as SPACE."""
  if _BYTE_PIECE.fullmatch(piece):
    return 1
  return len(piece.replace(SPACE, " ").encode())


def tokenizer_hash(tokenizer: tokenizers.Tokenizer) -> str:
  """sha256 of the tokenizer's JSON: equal hashes tokenize equally."""
  return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
