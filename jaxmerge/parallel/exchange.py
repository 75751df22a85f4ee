"""Texts and numbers that the processes of a job tell each other.

All of them call each function, at the same point of what they do. P processes.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmerge.errors import check

_SMALLEST_TEXT = 256


class _Here:
  """Says whether the first process works by itself, while the others wait."""

  is_alone = False


def is_job() -> bool:
  """Says whether several processes are at the same point."""
  return not _Here.is_alone and jax.process_count() > 1


@contextlib.contextmanager
def alone(is_alone: bool) -> Iterator[None]:
  """Within it the first process is as one that is in no job, or is not."""
  before, _Here.is_alone = _Here.is_alone, is_alone
  try:
    yield
  finally:
    _Here.is_alone = before


def broadcast_bytes(content: bytes = b"") -> bytes:
  """The bytes of the first process, in all."""
  if not is_job():
    return content
  mine = content if jax.process_index() == 0 else b""
  length = multihost_utils.broadcast_one_to_all(np.int32(len(mine)))
  padded = _padded(mine, int(length))
  found = np.asarray(multihost_utils.broadcast_one_to_all(padded))
  return found.tobytes()[: int(length)]


def broadcast_text(text: str = "") -> str:
  """The text of the first process, in all."""
  return broadcast_bytes(text.encode()).decode()


def gather_texts(text: str) -> list[str]:
  """The text of each process, in all."""
  if not is_job():
    return [text]
  content = text.encode()
  lengths_P = multihost_utils.process_allgather(np.int32(len(content)))
  if not lengths_P.any():
    return [""] * len(lengths_P)
  padded = _padded(content, int(lengths_P.max()))
  rows = multihost_utils.process_allgather(padded)
  return [
    row.tobytes()[: int(length)].decode()
    for row, length in zip(rows, lengths_P, strict=True)
  ]


def _padded(content: bytes, length: int) -> np.ndarray:
  """Pads to one of few lengths, as each is compiled."""
  size = max(_SMALLEST_TEXT, 1 << (length - 1).bit_length())
  return np.frombuffer(content.ljust(size, b"\0"), np.uint8)


def of_first_process(numbers_K: Sequence[float]) -> list[float]:
  """The first process's numbers in all of them, to the last of their 64 bits.

  Broadcast as such they would be rounded to float32.
  """
  found = np.asarray(numbers_K, np.float64)
  if is_job():
    words = multihost_utils.broadcast_one_to_all(found.view(np.uint32))
    found = np.asarray(words, np.uint32).view(np.float64)
  return found.tolist()


def agreed(decide: Callable[[], bool]) -> bool:
  """Tells all what the first process, which alone is asked, decides."""
  if not is_job():
    return decide()
  decided = jax.process_index() == 0 and decide()
  return bool(multihost_utils.broadcast_one_to_all(np.int32(decided)))


def whole(leaf: Any) -> np.ndarray:
  """An array of the devices in every host's memory."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
  return np.asarray(jax.device_get(leaf))


def least(value: float) -> float:
  """The least of a number of each process, as float32."""
  if not is_job():
    return value
  return float(multihost_utils.process_allgather(np.float32(value)).min())


def check_same(known: Callable[[], Mapping[str, Any]]) -> None:
  """Refuses a job whose processes do not know the same.

  Args:
    known: gives values by name, of JSON or that can be written as text; not
      called where there is one process.

  Raises:
    InputError: in all processes, lists what differs and where.
  """
  if not is_job():
    return
  text = json.dumps(known(), sort_keys=True, default=str)
  if len({*gather_texts(hashlib.sha256(text.encode()).hexdigest())}) == 1:
    return
  seen = [json.loads(each) for each in gather_texts(text)]
  names = sorted({name for each in seen for name in each})
  problems = []
  for name in names:
    where: dict[str, list[int]] = {}
    for process, each in enumerate(seen):
      value = json.dumps(each[name]) if name in each else "not known"
      where.setdefault(value, []).append(process)
    if len(where) > 1:
      told = (f"{value} in {_processes(who)}" for value, who in where.items())
      problems.append(f"the processes differ: {name} is {', '.join(told)}")
  check(problems)


def _processes(numbers: Iterable[int]) -> str:
  found = list(map(str, numbers))
  return f"process{'es' * bool(found[1:])} {', '.join(found)}"
