"""Optuna's journal in an object store: one object an entry.

An entry is created under the next free number, on condition that no object is
there; when another searcher was first, the entry goes to the number after. The
entries are thus numbered without a gap, and their order is the same for all.

TensorStore's drivers do this in one step of the store: "file" under a lock,
"gcs" by ifGenerationMatch=0, "s3" by If-None-Match: * (asked of the store by
tensorstore 0.1.86; a new study is opened only after the store has shown that
it honours it, since some that speak S3 ignore the header).
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from jaxmerge.bayesopt.study import records
from jaxmerge.bayesopt.study.journal import replay
from jaxmerge.errors import InputError

SCHEMES = ("gs://", "s3://", "file://")
# TensorStore tries for many minutes where there is no network or no login.
_TIMEOUT_SECONDS = 60.0
_MOST_READ_AT_ONCE = 64
# Rivals for one key, by which a store that ignores the condition shows itself.
_NUM_RIVALS = 8


def _spec(url: str) -> dict[str, Any]:
  scheme, _, rest = url.partition("://")
  if scheme == "file":
    return {"driver": "file", "path": rest.rstrip("/") + "/"}
  bucket, _, path = rest.partition("/")
  if not bucket or not path.strip("/"):
    raise InputError(f"{url} names no place in a bucket for the study")
  spec = {"bucket": bucket, "path": path.strip("/") + "/"}
  if scheme == "gs":
    return {"driver": "gcs", **spec}
  # TensorStore itself goes to Amazon whatever these say.
  environment = {"endpoint": "AWS_ENDPOINT_URL", "aws_region": "AWS_REGION"}
  for key, variable in environment.items():
    if os.environ.get(variable):
      spec[key] = os.environ[variable]
  return {"driver": "s3", **spec}


class ObjectJournal(BaseJournalBackend):
  """A journal for many writers under <url>/000000000000.json and on.

  Args:
    url: gs://bucket/path, s3://bucket/path or file:///path.

  Raises:
    InputError: the store cannot be reached, or would let two writers create
      one object.
  """

  def __init__(self, url: str):
    import tensorstore

    self._url = url.rstrip("/")
    spec = _spec(url)
    try:
      opening = tensorstore.KvStore.open(spec)
    except ValueError as error:
      raise InputError(f"cannot use {self._url}: {error}") from error
    self._store = self._wait(opening)
    self._next = 0
    # The generation that says "no object"; a driver has one for all keys.
    self._missing = self._wait(self._store.read("none")).stamp.generation
    if self._is_new():
      self._check_conditional()

  def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
    number, count = log_number_from, 1
    while True:
      # One read where nothing is new, many at once for a whole journal.
      for value in self._read(range(number, number + count)):
        if value is None:
          return
        log = self._entry(number, value)["log"]
        if problem := records.problem_of(log):
          raise self._damaged(number, problem)
        number += 1
        self._next = max(self._next, number)
        yield records.bare(log)
      count = min(2 * count, _MOST_READ_AT_ONCE)

  def append_logs(self, logs: list[dict[str, Any]]) -> None:
    for log in logs:
      self._append({"id": uuid.uuid4().hex, "log": records.sealed(log)})

  def _append(self, entry: dict[str, Any]) -> None:
    value = json.dumps(entry, separators=(",", ":"))
    while True:
      key = _key(self._next)
      writing = self._store.write(key, value, if_equal=self._missing)
      written = self._wait(writing)
      # Refused is also a write that succeeded, lost its answer and was sent
      # again: then the object there is this very entry.
      mine = bool(written.generation) or (
        self._entry(self._next, self._wait(self._store.read(key)).value)["id"]
        == entry["id"]
      )
      self._next += 1
      if mine:
        return

  def _entry(self, number: int, value: bytes) -> dict[str, Any]:
    entry = records.parsed(value)
    if not isinstance(entry, dict) or entry.keys() != {"id", "log"}:
      raise self._damaged(number, "it is no entry of a journal")
    return entry

  def _damaged(self, number: int, problem: str) -> InputError:
    return InputError(
      f"the journal {self._url} is damaged at {_key(number)}: {problem}. "
      "Restore it, or choose another place"
    )

  def _is_new(self) -> bool:
    """Says whether no entry is there; InputError where other objects are."""
    later = self._read(range(1, _MOST_READ_AT_ONCE))
    # Read last: another searcher may begin in between.
    [first] = self._read([0])
    if first is None:
      if any(value is not None for value in later):
        raise InputError(
          f"{self._url} holds objects that are named like the entries of a "
          "journal, but not the first one: choose another place"
        )
      return True
    entry = records.parsed(first)
    log = entry.get("log") if isinstance(entry, dict) else None
    if not records.creates_study(log):
      raise InputError(
        f"{self._url} holds no study: its {_key(0)} creates none. It is left "
        "as it is; choose another place"
      )
    return False

  def _read(self, numbers: Iterable[int]) -> list[bytes | None]:
    """Values of entries, None where there is none."""
    reads = [self._store.read(_key(number)) for number in numbers]
    found = [self._wait(read) for read in reads]
    return [None if f.state == "missing" else f.value for f in found]

  def _check_conditional(self) -> None:
    key = f"probe-{uuid.uuid4().hex}"
    texts = map(str, range(_NUM_RIVALS))
    rivals = [self._store.write(key, t, if_equal=self._missing) for t in texts]
    created = sum(bool(self._wait(rival).generation) for rival in rivals)
    self._wait(self._store.write(key, None))
    if created > 1:
      raise InputError(
        f"{self._url} cannot hold a study: its store lets several writers"
        f" create one object; use a database URL such as postgresql://..."
      )

  def _wait(self, future: Any) -> Any:
    try:
      return future.result(timeout=_TIMEOUT_SECONDS)
    except TimeoutError as error:
      raise InputError(
        f"{self._url} gives no answer in {_TIMEOUT_SECONDS:.0f} seconds: check"
        f" the network and the login"
      ) from error
    except (ValueError, RuntimeError, OSError, LookupError) as error:
      raise InputError(f"cannot use {self._url}: {error}") from error


def _key(number: int) -> str:
  return f"{number:012d}.json"


def open_object_journal(url: str) -> JournalStorage:
  """Opens or creates a journal; InputError as ObjectJournal, or if damaged."""
  return replay(ObjectJournal(url), url)
