"""SHA-256 of values and files.

Those of a corpus's files are kept, so that a large one is not read at each
start. A file is known by its path, its size and when it and its entry last
changed; one that has changed within the last seconds is hashed anew the next
time, as clocks of file systems are coarse.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from typing import Any

from jaxmerge.errors import InputError
from jaxmerge.files import cache_root, make_directory, write_json
from jaxmerge.reading import read_file, read_json

_NAME = "file_hashes.json"
_SETTLED_NS = 2_000_000_000


def sha256_of_json(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of_file(path: str | os.PathLike[str]) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(paths: Iterable[str]) -> dict[str, str]:
  """The SHA-256 of each file, as it is kept where nothing has changed."""
  try:
    kept = dict(read_json(read_file(cache_root() / _NAME)))
  except (OSError, ValueError, TypeError):
    kept = {}
  found: dict[str, str] = {}
  new: dict[str, list[Any]] = {}
  for path in paths:
    seen = os.stat(path)
    marks = [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
    known = kept.get(path)
    if isinstance(known, list) and known[:-1] == marks:
      found[path] = known[-1]
      continue
    found[path] = sha256_of_file(path)
    if time.time_ns() - max(marks[1:]) > _SETTLED_NS:
      new[path] = [*marks, found[path]]
  if new:
    # Only time is lost where nothing can be kept.
    with contextlib.suppress(OSError, InputError):
      write_json(make_directory(cache_root()) / _NAME, kept | new)
  return found
