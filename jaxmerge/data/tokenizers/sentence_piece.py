"""A tokenizer.model of SentencePiece.

V: size of the vocabulary.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from jaxmerge.data.tokenizers.protocol import find_end_of_text, piece_bytes
from jaxmerge.errors import InputError

TOKENIZER_MODEL = "tokenizer.model"
# The largest have a third of it.
_LARGEST = 2**24
# A token of no bytes takes 72 in memory; by accident there are a few.
_EMPTY, _MOST_EMPTY = b"\n\0", 100_000
# Fields of a SentencePiece model, which end it: without them it loads as well,
# and tokenizes in another way.
# https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
_TRAINER, _NORMALIZER = 2, 3
_MESSAGE = 2  # the wire type of all fields of a model


class SentencePieceTokenizer:
  """A SentencePiece model of any kind; `name` is its file's, for messages.

  Raises:
    InputError: the model is damaged or cut off, or it is none.
  """

  file_name = TOKENIZER_MODEL

  def __init__(self, content: bytes, name: object = TOKENIZER_MODEL) -> None:
    model = sentencepiece.SentencePieceProcessor()
    try:
      if len(content) > _LARGEST:
        raise ValueError(f"it has {len(content)} bytes")
      if content.count(_EMPTY) > _MOST_EMPTY:
        raise ValueError("its tokens are empty")
      model.load_from_serialized_proto(content)
      self.size = model.vocab_size()
      self.vocabulary = {model.id_to_piece(i): i for i in range(self.size)}
      _check_whole(content)
    except (RuntimeError, ValueError, DecodeError) as error:
      raise InputError(
        f"{name} cannot be used: it is damaged, or no SentencePiece model "
        f"({str(error).strip()})"
      ) from error
    self.content = content
    self.hash = hashlib.sha256(content).hexdigest()
    self._model = model

  @property
  def end_of_text(self) -> int:
    number = self._model.eos_id()
    return find_end_of_text(self.vocabulary, None if number < 0 else number)

  @functools.cached_property
  def bytes_per_token_V(self) -> np.ndarray:
    model = self._model
    bytes_V = np.zeros(self.size, np.int32)
    for piece, number in self.vocabulary.items():
      if not (model.is_control(number) or model.is_unknown(number)):
        is_byte = model.is_byte(number)
        bytes_V[number] = 1 if is_byte else piece_bytes(piece)
    return bytes_V

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    try:
      return self._model.encode([text.encode() for text in texts], out_type=int)
    except (RuntimeError, UnicodeEncodeError) as error:
      raise InputError(f"a text cannot be tokenized: {error}") from error

  def decode(self, ids: Sequence[int]) -> str:
    return self._model.decode(list(ids))

  def save(self, directory: Path) -> None:
    (directory / self.file_name).write_bytes(self.content)


def _check_whole(content: bytes) -> None:
  """Raises ValueError where a model that SentencePiece reads is cut off."""
  fields = list(UnknownFieldSet(Empty.FromString(content)))
  for kind in {field.wire_type for field in fields} - {_MESSAGE}:
    raise ValueError(f"it has a field of wire type {kind}")
  if not {_TRAINER, _NORMALIZER} <= {field.field_number for field in fields}:
    raise ValueError("it is cut off")
