"""Keeps what tasks have measured of models, in the user's cache directory.

In a job that is the cache of the first process, which alone reads and writes:
all find the same there, whether they share a disk or not.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxmerge.files import cache_root, write_bytes
from jaxmerge.parallel.distributed import is_first_process
from jaxmerge.parallel.exchange import broadcast_bytes
from jaxmerge.reading import read_file

_FACTS = "facts"
_DIGEST = hashlib.sha256().digest_size  # bytes, before what they are of


class Measured(NamedTuple):
  """Holds what a task measures of one model.

  Attributes:
    arrays: by name.
    facts: of JSON, by name.
  """

  arrays: Mapping[str, np.ndarray]
  facts: Mapping[str, Any]


def find(key: str) -> Measured | None:
  """Reads what is kept under a key; None where nothing is, or it is damaged.

  In a job all processes call it.
  """
  content = b""
  if is_first_process():
    with contextlib.suppress(OSError):
      content = read_file(_place(key))
  content = broadcast_bytes(content)
  digest, kept = content[:_DIGEST], content[_DIGEST:]
  if hashlib.sha256(kept).digest() != digest:
    return None
  with np.load(io.BytesIO(kept)) as file:
    arrays = {name: file[name] for name in file.files}
  return Measured(arrays, json.loads(str(arrays.pop(_FACTS))))


def keep(key: str, measured: Measured) -> None:
  """Keeps it under a key, whole or, where there is no room, not at all."""
  if not is_first_process():
    return
  place = _place(key)
  facts = np.array(json.dumps(measured.facts))
  kept = npz({**measured.arrays, _FACTS: facts})
  with contextlib.suppress(OSError):
    place.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(place, hashlib.sha256(kept).digest() + kept)


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
  """The content of a file for numpy.load, without pickles."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, allow_pickle=False, **arrays)
  return buffer.getvalue()


def _place(key: str) -> epath.Path:
  return cache_root() / "scores" / key[:2] / f"{key}.scores"
