"""The protocol of tokenizers.

V: size of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxmerge.errors import InputError

END_OF_TEXT = "<|endoftext|>"
SPACE = "▁"  # how a space is written in pieces
_ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")


class Tokenizer(Protocol):
  """Turns texts into ids; the names of special tokens in a text are text.

  Attributes:
    file_name: how its file is named beside a model.
    content: what a checkpoint and a run keep of it: the file, whole.
    hash: sha256 of all that decides ids: equal hashes tokenize equally.
    vocabulary: ids by the names of their tokens.
    size: one more than the largest id: ids may have gaps.
  """

  file_name: str
  content: bytes
  hash: str
  vocabulary: dict[str, int]
  size: int

  @property
  def end_of_text(self) -> int:
    """The id of the token that stands before every document.

    That is one of the known names, else the one that the file says ends a text;
    InputError if the tokenizer has neither.
    """

  @property
  def bytes_per_token_V(self) -> np.ndarray:
    """int32[V], UTF-8 bytes of text that each token stands for.

    Over the tokens of a text they add up to its length as the tokenizer changes
    it (NFC normalisation, a space put in front). Special tokens, ids without a
    token and unknown pieces of a SentencePiece model have 0.
    """

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, on all cores, without begin and end of text."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; special tokens are left out."""

  def save(self, directory: Path) -> None:
    """Writes the file of a token cache."""


def find_end_of_text(vocabulary: Mapping[str, int], other: int | None) -> int:
  """The id of a known name, else the other; InputError where both lack."""
  known = [vocabulary[name] for name in _ENDS_OF_TEXT if name in vocabulary]
  if known:
    return known[0]
  if other is None:
    names = ", ".join(_ENDS_OF_TEXT)
    raise InputError(f"the tokenizer has no end-of-text token ({names})")
  return other


def piece_bytes(piece: str) -> int:
  """UTF-8 bytes of a piece that is no byte; a space is written as SPACE."""
  return len(piece.replace(SPACE, " ").encode())
