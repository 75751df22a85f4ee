"""Files of any content as text, which JSON can hold."""

import base64

# How a carried file that is not UTF-8 is kept, as of a data: URL; those that
# end in `.model` are kept as base64 alone, as they were before.
_BINARY = "data:;base64,"


def to_text(name: str, content: bytes) -> str:
  """A carried file as text, base64 where it is none."""
  if name.endswith(".model"):
    return base64.b64encode(content).decode()
  try:
    text = content.decode()
  except UnicodeDecodeError:
    text = _BINARY
  if text.startswith(_BINARY):
    return _BINARY + base64.b64encode(content).decode()
  return text


def to_bytes(name: str, text: str) -> bytes:
  """The inverse of to_text; ValueError where it is no base64."""
  if name.endswith(".model"):
    return base64.b64decode(text, validate=True)
  if text.startswith(_BINARY):
    return base64.b64decode(text.removeprefix(_BINARY), validate=True)
  return text.encode()
