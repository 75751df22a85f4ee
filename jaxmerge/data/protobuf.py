"""Reads the wire format of Protocol Buffers, never past the bytes it is given.

https://protobuf.dev/programming-guides/encoding: a message is a row of fields,
each a tag (field number and wire type) and a value.
"""

import struct
from collections.abc import Mapping

from jaxmerge.errors import InputError

# A varint or a fixed-width number as it is; a string, a message or bytes.
Value = int | bytes
_FIXED = {1: 8, 5: 4}
_MOST_VARINT_BYTES = 10


def read_message(data: bytes) -> dict[int, list[Value]]:
  """The values of each field of a message, in their order.

  Raises:
    InputError: a value goes past the end, or has no known wire type.
  """
  fields: dict[int, list[Value]] = {}
  at = 0
  while at < len(data):
    tag, at = _varint(data, at)
    number, kind = tag >> 3, tag & 7
    value: Value
    if kind == 0:
      value, at = _varint(data, at)
    else:
      size = _FIXED.get(kind, 0)
      if kind == 2:
        size, at = _varint(data, at)
      elif not size:
        raise InputError(f"a field has the unknown wire type {kind}")
      value, at = data[at : at + size], at + size
      if at > len(data):
        raise InputError("it is cut off")
    if not number:
      raise InputError("a field has the number 0")
    fields.setdefault(number, []).append(value)
  return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """A number of up to 64 bits, 7 in a byte, the low ones first."""
  number = 0
  for place, byte in enumerate(data[at : at + _MOST_VARINT_BYTES]):
    number |= (byte & 0x7F) << (7 * place)
    if byte < 0x80:
      return number & (2**64 - 1), at + place + 1
  raise InputError("a number is cut off or too long")


class Message:
  """Fields of a message by number, each with its type and default.

  A field that is there more than once has its last value, a message in it all
  of theirs together, as the format asks.
  """

  def __init__(self, data: bytes):
    self.fields: Mapping[int, list[Value]] = read_message(data)

  def parts(self, number: int) -> list[bytes]:
    """Raises InputError where a value is a number."""
    values = self.fields.get(number, [])
    parts = [value for value in values if isinstance(value, bytes)]
    if len(parts) < len(values):
      raise InputError(f"field {number} has a value of another type")
    return parts

  def message(self, number: int) -> "Message":
    return Message(b"".join(self.parts(number)))

  def content(self, number: int, default: bytes = b"") -> bytes:
    parts = self.parts(number)
    return parts[-1] if parts else default

  def text(self, number: int, default: str = "") -> str:
    try:
      return self.content(number, default.encode()).decode()
    except UnicodeDecodeError as error:
      raise InputError(f"field {number} is not UTF-8") from error

  def number(self, number: int, default: int) -> int:
    value = self.fields.get(number, [default])[-1]
    if not isinstance(value, int):
      raise InputError(f"field {number} has a value of another type")
    return value - 2**64 if value >= 2**63 else value

  def floating(self, number: int) -> float:
    data = self.content(number, bytes(4))
    if len(data) != 4:
      raise InputError(f"field {number} has a value of another type")
    return float(struct.unpack("<f", data)[0])
