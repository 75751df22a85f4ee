"""Files that may be damaged, or made to do damage: read whole, as JSON."""

import errno
import json
import os
import pathlib
from typing import Any

from etils import epath

# json itself gives up where Python's own stack ends, which depends on who asks.
_DEEPEST = 200


def check_is_file(path: epath.PathLike) -> None:
  """Refuses a directory, and a pipe, which would be waited for for ever.

  Raises:
    OSError: there is something else than a file.
  """
  path = epath.Path(path)
  # epath takes a pipe for a file.
  is_file = path.is_file if "://" in str(path) else pathlib.Path(path).is_file
  if path.exists() and not is_file():
    raise OSError(errno.EINVAL, "it is not a file", str(path))


def check_no_pipes(directory: epath.PathLike) -> None:
  """Refuses a directory in which a library would wait for a pipe for ever.

  Raises:
    OSError: something in it is neither a file nor a directory.
  """
  for folder, _, names in os.walk(directory):  # of a bucket there is nothing
    for name in names:
      if os.path.exists(os.path.join(folder, name)):
        check_is_file(os.path.join(folder, name))


def read_file(path: epath.PathLike) -> bytes:
  """The content of a file.

  Raises:
    OSError: it cannot be read, or is none.
  """
  check_is_file(path)
  return epath.Path(path).read_bytes()


def read_json(text: str | bytes) -> Any:
  """JSON in which no key is given twice; a byte-order mark is passed over.

  Raises:
    ValueError: it is damaged, or nested too deeply; the message says how.
  """

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
      raise ValueError("a key is given twice")
    return value

  if isinstance(text, bytes):
    text = text.decode()
  try:
    value = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=unique)
    if not _is_deep(value, _DEEPEST):
      return value
  except RecursionError:
    pass
  raise ValueError("it is nested too deeply")


def _is_deep(value: Any, levels: int) -> bool:
  inner = value.values() if isinstance(value, dict) else value
  if levels == 0 or not isinstance(value, dict | list):
    return levels == 0
  return any(_is_deep(child, levels - 1) for child in inner)
