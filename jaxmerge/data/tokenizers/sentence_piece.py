"""A tokenizer.model of SentencePiece.

V: size of the vocabulary.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from jaxmerge.data.tokenizers.protocol import find_end_of_text, piece_bytes
from jaxmerge.errors import InputError

TOKENIZER_MODEL = "tokenizer.model"
# Fields of a SentencePiece model, which end it: without them it loads as well,
# and tokenizes in another way.
# https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
_TRAINER, _NORMALIZER = 2, 3


class SentencePieceTokenizer:
  """A SentencePiece model of any kind, read by SentencePiece itself.

  Args:
    content: the file.
    name: of the file, for messages.

  Raises:
    InputError: it is damaged or cut off, or it is none.
  """

  file_name = TOKENIZER_MODEL

  def __init__(self, content: bytes, name: object = TOKENIZER_MODEL) -> None:
    model = sentencepiece.SentencePieceProcessor()
    try:
      model.load_from_serialized_proto(content)
      ids = list(range(model.vocab_size()))
      self.vocabulary = {model.id_to_piece(number): number for number in ids}
      if not {_TRAINER, _NORMALIZER} <= _fields(content):
        raise ValueError("it is cut off")
    except (RuntimeError, ValueError) as error:
      raise InputError(
        f"{name} cannot be used: it is damaged, or no SentencePiece model "
        f"({str(error).strip()})"
      ) from error
    self.content = content
    self.hash = hashlib.sha256(content).hexdigest()
    self.size = len(ids)
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


def _fields(message: bytes) -> set[int]:
  """Numbers of the fields of a message that has been parsed before.

  Each is (8 number + 2), the size, and as many bytes; both numbers have 7 bits
  a byte, the lowest first: https://protobuf.dev/programming-guides/encoding
  """
  found: set[int] = set()
  place = 0
  while place < len(message):
    pair = []
    for _ in range(2):
      number = shift = 0
      while message[place] & 128:
        number |= (message[place] & 127) << shift
        place, shift = place + 1, shift + 7
      pair.append(number | message[place] << shift)
      place += 1
    if pair[0] % 8 != 2:
      raise ValueError(f"it has a field of wire type {pair[0] % 8}")
    found.add(pair[0] // 8)
    place += pair[1]
  return found
