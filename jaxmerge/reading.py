"""Files that may be damaged, or made to do damage: read whole, as JSON."""

import errno
import json
import os
import pathlib
import re
import sys
from typing import Any

from etils import epath

# Bytes of a file that is read whole; the largest tokenizers have a third of it.
LARGEST = 100_000_000
# json itself gives up where Python's own stack ends, which depends on who asks.
_DEEPEST = 200
# Of a text in memory, where a character may take 4 bytes.
_LARGEST_TEXT = 150_000_000
# A value takes 72 bytes of memory, an object three times as much.
_MOST_VALUES = 3_000_000
_MOST_DIGITS = 300
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


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


def read_file(path: epath.PathLike, largest: float = LARGEST) -> bytes:
  """The content of a file of at most `largest` bytes.

  Raises:
    OSError: it cannot be read, is none or is larger.
  """
  check_is_file(path)
  path = epath.Path(path)
  if (size := path.stat().length) > largest:
    reason = f"it has {size} bytes, more than such a file needs"
    raise OSError(errno.EFBIG, reason, str(path))
  return path.read_bytes()


def read_json(text: str | bytes) -> Any:
  """JSON in which no key is given twice; a byte-order mark is passed over.

  All text in it is UTF-8, and all integers are within the range of a float.

  Raises:
    ValueError: it is damaged, nested too deeply, or would take far more memory
      than its own size; the message says how.
  """
  if isinstance(text, bytes):
    text = text.decode()
  if sys.getsizeof(text) > _LARGEST_TEXT:
    raise ValueError(f"it has {len(text)} characters")
  if sum(map(text.count, ",[{{{")) > _MOST_VALUES:
    raise ValueError(f"it holds more than {_MOST_VALUES} values")
  try:
    value = json.loads(
      text.removeprefix("\ufeff"),
      object_pairs_hook=_unique,
      parse_int=_integer,
    )
    if _SURROGATE.search(text):  # of a pair, or alone
      json.dumps(value, ensure_ascii=False).encode()
    if not _is_deep(value, _DEEPEST):
      return value
  except UnicodeEncodeError as error:
    raise ValueError("it holds text that is not UTF-8") from error
  except RecursionError:
    pass
  raise ValueError("it is nested too deeply")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  value = dict(pairs)
  if len(value) < len(pairs):
    raise ValueError("a key is given twice")
  return value


def _integer(digits: str) -> int:
  if len(digits) > _MOST_DIGITS:
    raise ValueError(f"a number has {len(digits)} digits")
  return int(digits)


def _is_deep(value: Any, levels: int) -> bool:
  inner = value.values() if isinstance(value, dict) else value
  if levels == 0 or not isinstance(value, dict | list):
    return levels == 0
  return any(_is_deep(child, levels - 1) for child in inner)
