"""What a SentencePiece `tokenizer.model` says, read and checked.

The format, with the numbers of its fields:
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

import enum
import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxmerge.data.protobuf import Message
from jaxmerge.errors import InputError

SPACE = "▁"  # how a space is written in pieces
_MOST_BYTES = 64 << 20  # the largest in use are of about 5 MB
_MOST_CHARACTERS = 1000  # of one piece; the largest in use are of about 50
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class Model(enum.IntEnum):
  UNIGRAM = 1
  BPE = 2


class Type(enum.IntEnum):
  NORMAL = 1
  UNKNOWN = 2
  CONTROL = 3
  USER_DEFINED = 4
  UNUSED = 5
  BYTE = 6


class Piece(NamedTuple):
  name: str
  score: float
  type: Type


class Spec(NamedTuple):
  """What decides how a text is tokenized.

  Attributes:
    pieces: their places are the ids.
    model: how pieces are chosen.
    byte_fallback: characters without a piece become bytes.
    end: the name of the piece that ends a text, "" without.
    charsmap: rules by which characters are replaced.
    dummy_prefix: a space is put in front.
    strip: runs of spaces become one, those at both ends go.
    escape: spaces become SPACE.
  """

  pieces: Sequence[Piece]
  model: Model
  byte_fallback: bool
  end: str
  charsmap: bytes
  dummy_prefix: bool
  strip: bool
  escape: bool

  def names(self, kind: Type) -> list[str]:
    return [piece.name for piece in self.pieces if piece.type == kind]


def read_model(data: bytes) -> Spec:
  """Reads a tokenizer.model.

  Raises:
    InputError: it is damaged, too large, of words or characters, or has what
      is not supported.
  """
  if len(data) > _MOST_BYTES:
    raise InputError(f"it has more than {_MOST_BYTES >> 20} MiB")
  message = Message(data)
  for number, name in ((2, "trainer_spec"), (3, "normalizer_spec")):
    if number not in message.fields:
      raise InputError(f"it has no {name}")
  trainer, normalizer = message.message(2), message.message(3)
  kind = trainer.number(3, Model.UNIGRAM)
  if kind not in list(Model):
    other = {3: "WORD", 4: "CHAR"}.get(kind, str(kind))
    raise InputError(f"its model_type is {other}, not BPE or UNIGRAM")
  if trainer.number(24, 0):
    raise InputError("treat_whitespace_as_suffix is not supported")
  pieces = [_piece(part) for part in message.parts(1)]
  byte_fallback = bool(trainer.number(35, 0))
  _check_pieces(pieces, byte_fallback)
  end = trainer.number(42, 2)
  has_end = 0 <= end < len(pieces) and pieces[end].type == Type.CONTROL
  return Spec(
    pieces,
    Model(kind),
    byte_fallback,
    pieces[end].name if has_end else "",
    normalizer.content(2),
    bool(normalizer.number(3, 1)),
    bool(normalizer.number(4, 1)),
    bool(normalizer.number(5, 1)),
  )


def _piece(data: bytes) -> Piece:
  message = Message(data)
  name, kind = message.text(1), message.number(3, Type.NORMAL)
  piece = Piece(name, message.floating(2), kind)  # type: ignore[arg-type]
  if not 0 < len(name) <= _MOST_CHARACTERS:
    raise InputError(f"a piece has {len(name)} characters")
  if kind not in list(Type) or kind == Type.UNUSED:
    raise InputError(f"piece {name!r} is of type {kind}")
  if not math.isfinite(piece.score):
    raise InputError(f"piece {name!r} has the score {piece.score}")
  return piece._replace(type=Type(kind))


def _check_pieces(pieces: Sequence[Piece], byte_fallback: bool) -> None:
  names: set[str] = set()
  for name, _, _ in pieces:
    if name in names:
      raise InputError(f"it has two pieces {name!r}")
    names.add(name)
  unknown = sum(piece.type == Type.UNKNOWN for piece in pieces)
  if unknown != 1:
    raise InputError(f"it has {unknown} pieces for unknown characters, not 1")
  found = sorted(piece.name for piece in pieces if piece.type == Type.BYTE)
  if found != (sorted(_BYTES) if byte_fallback else []):
    raise InputError("its pieces for bytes do not fit byte_fallback")
