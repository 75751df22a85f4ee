"""Byte-level BPE: trained on a corpus, or loaded from a tokenizer.json.

V: size of the vocabulary.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxmerge.errors import InputError

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # every byte, and the end of text
SAMPLE_BYTES = 5_000_000
_ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")


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


def _is_byte_level(part: Any) -> bool:
  """Whether a part of a tokenizer's JSON is, or has in it, a ByteLevel."""
  if isinstance(part, dict):
    found = part.get("type") == "ByteLevel"
    return found or any(_is_byte_level(value) for value in part.values())
  return isinstance(part, list) and any(_is_byte_level(item) for item in part)


def load_tokenizer(path: str | os.PathLike[str]) -> tokenizers.Tokenizer:
  """Loads a byte-level tokenizer.json, as of GPT-2, Llama 3, Qwen or SmolLM.

  Raises:
    InputError: no such file, not a tokenizer, no end-of-text token, or not
      byte-level (the bytes that a token stands for could not be counted).
  """
  path = os.fspath(path)
  try:
    with open(path, encoding="utf-8") as file:
      content = file.read()
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"cannot read tokenizer {path}: {error}") from error
  try:
    tokenizer = tokenizers.Tokenizer.from_str(content)
  except Exception as error:  # the library raises plain Exception
    raise InputError(f"{path} is not a tokenizer.json: {error}") from error
  if not _is_byte_level(json.loads(tokenizer.to_str())["decoder"]):
    raise InputError(
      f"tokenizer {path} is not byte-level, so that bits per byte cannot be "
      "counted; use a byte-level BPE"
    )
  end_of_text_id(tokenizer)
  return _for_text(tokenizer)


def end_of_text_id(tokenizer: tokenizers.Tokenizer) -> int:
  """The id of the token that stands before every document.

  Raises:
    InputError: the tokenizer has none of the known names.
  """
  for name in _ENDS_OF_TEXT:
    number = tokenizer.token_to_id(name)
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
  changed text.

  Returns:
    int32[V]; 0 for special tokens and for ids without a token.
  """
  vocabulary = tokenizer.get_vocab(with_added_tokens=True)
  bytes_V = np.zeros(vocabulary_size(tokenizer), np.int32)
  for token, number in vocabulary.items():
    bytes_V[number] = len(token)  # byte-level: one character is one byte
  for number, added in tokenizer.get_added_tokens_decoder().items():
    bytes_V[number] = 0 if added.special else len(added.content.encode())
  return bytes_V


def tokenizer_hash(tokenizer: tokenizers.Tokenizer) -> str:
  """sha256 of the tokenizer's JSON: equal hashes tokenize equally."""
  return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
