"""Optuna's journal on a local file, made safe to be killed at any moment."""

import contextlib
import fcntl
import json
import os
import pathlib
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from jaxmerge import owner
from jaxmerge.bayesopt.identity import check_journal_file
from jaxmerge.bayesopt.records import (
  bare,
  parsed,
  problem_of,
  sealed_line,
)
from jaxmerge.errors import InputError, check

# An owner that cannot be looked up (another host, another program) is taken
# for dead when its lock has not changed for this long; a write takes
# milliseconds.
_GRACE_SECONDS = 30.0
# A lock that is held for long is renewed; three renewals missed are too many.
_BLOCK_GRACE_SECONDS = 120.0
_RENEWAL_SECONDS = 30.0
# Damaged lines that a message names.
_MOST_SHOWN = 3


class OwnedLock(BaseJournalFileLock):
  """A lock file that says whose it is, so that a dead owner's is dropped.

  The lock is a symbolic link named <journal>.lock, as Optuna's own is (other
  Optuna programs respect it); its target, "host:pid:start", is its owner.
  """

  def __init__(self, journal: str, grace_seconds: float = _GRACE_SECONDS):
    self._journal = journal
    self._lock = journal + ".lock"
    self._grace_seconds = grace_seconds

  def acquire(self) -> bool:
    me = _me()
    seen: tuple[str, float] | None = None
    since = time.monotonic()
    pause = 0.001
    while True:
      try:
        os.symlink(me, self._lock)
        return True
      except FileExistsError:
        pass
      holder = self._holder()
      if holder != seen:
        seen, since = holder, time.monotonic()
      waited = time.monotonic() - since
      patient = waited <= self._grace_seconds
      if holder is not None and _is_abandoned(holder[0], patient):
        self._drop(holder)
        continue
      time.sleep(pause)
      pause = min(2 * pause, 0.1)

  def release(self) -> None:
    # Whoever stood still for too long finds another's lock, or none.
    holder = self._holder()
    if holder is not None and holder[0] == _me():
      os.unlink(self._lock)

  def renew(self) -> None:
    """Says that the owner still lives, to those who cannot look it up."""
    with contextlib.suppress(FileNotFoundError):
      os.utime(self._lock, follow_symlinks=False)

  def _holder(self) -> tuple[str, float] | None:
    try:
      return os.readlink(self._lock), os.lstat(self._lock).st_mtime
    except FileNotFoundError:
      return None
    except OSError as error:
      raise InputError(
        f"{self._lock} is in the way of the journal's lock: remove it"
      ) from error

  def _drop(self, holder: tuple[str, float]) -> None:
    # Two waiters may find the same dead owner: one of them at a time looks
    # again and removes, or the second would remove the first one's new lock.
    with open(self._journal, "ab") as journal:
      fcntl.flock(journal, fcntl.LOCK_EX)
      if self._holder() == holder:
        os.unlink(self._lock)


def _me() -> str:
  return ":".join(map(str, owner.this_process()))


def _is_abandoned(target: str, patient: bool) -> bool:
  parts = target.rsplit(":", 2)
  if len(parts) == 3 and parts[1].isdigit():
    holder = owner.Owner(parts[0], int(parts[1]), parts[2])
    if owner.is_here(holder):
      return not owner.is_alive(holder)
  return not patient


@contextlib.contextmanager
def one_at_a_time(path: str | os.PathLike[str]) -> Iterator[None]:
  """Waits for other processes that are in the same block.

  A process that died there is not waited for; one of another host, which
  cannot be looked up, for two minutes. An object store has no such lock.
  """
  if "://" in os.fspath(path):
    yield
    return
  lock = OwnedLock(os.fspath(path), _BLOCK_GRACE_SECONDS)
  lock.acquire()
  left = threading.Event()

  def keep() -> None:
    while not left.wait(_RENEWAL_SECONDS):
      lock.renew()

  renewing = threading.Thread(target=keep, daemon=True)
  renewing.start()
  try:
    yield
  finally:
    left.set()
    renewing.join()
    lock.release()


class _MendingBackend(JournalFileBackend):
  """Seals what it writes, and checks what it reads.

  It mends a line that a searcher died in, before it appends its own: else the
  two records would be glued together, and every searcher of the study, and
  every later one, would stop there.
  """

  _counted = (0, 0)  # bytes of the file, and the whole lines in them

  def append_logs(self, logs: list[dict[str, Any]]) -> None:
    lock = OwnedLock(self._file_path)
    lock.acquire()
    try:
      # Nobody has read the torn line: readers leave a line without an end.
      _cut_torn_line(pathlib.Path(self._file_path))
      with open(self._file_path, "ab+") as journal:
        size, count = self._counted
        if size > os.fstat(journal.fileno()).st_size:  # another file is there
          size = count = 0
        journal.seek(size)
        count += sum(1 for _ in journal)
        for number, log in enumerate(logs, start=count + 1):
          journal.write(sealed_line(log, number))
        self._counted = (journal.tell(), count + len(logs))
        journal.flush()
        os.fsync(journal.fileno())
    finally:
      lock.release()

  def read_logs(self, log_number_from: int) -> Generator[dict[str, Any]]:
    line = log_number_from
    try:
      for record in super().read_logs(log_number_from):
        line += 1
        problem = problem_of(record, line)
        if problem:
          raise InputError(_damaged(self._file_path, line, problem))
        yield bare(record)
    except (
      json.JSONDecodeError,
      UnicodeDecodeError,
      RecursionError,
    ) as error:
      raise InputError(
        _damaged(self._file_path, line + 1, "it is no JSON")
      ) from error


def _ends_whole(path: pathlib.Path) -> bool:
  with open(path, "rb") as journal:
    if journal.seek(0, os.SEEK_END) == 0:
      return True
    journal.seek(-1, os.SEEK_END)
    return journal.read(1) == b"\n"


def _cut_torn_line(path: pathlib.Path) -> None:
  """Cuts the file back to its last newline; the tail goes to <path>.torn."""
  if _ends_whole(path):
    return
  check_journal_file(path)  # what is not ours is not ours to mend
  data = path.read_bytes()
  end = data.rfind(b"\n") + 1
  # The tail is safe on disk before the journal loses it.
  with open(f"{path}.torn", "ab") as torn:
    torn.write(data[end:] + b"\n")
    torn.flush()
    os.fsync(torn.fileno())
  with open(path, "rb+") as journal:
    journal.truncate(end)
    os.fsync(journal.fileno())


def _check_lines(path: pathlib.Path) -> None:
  """Refuses a journal with a damaged line; the one that is torn is none."""
  *lines, _ = path.read_bytes().split(b"\n")
  problems = [
    _damaged(path, number, problem)
    for number, line in enumerate(lines, start=1)
    if (problem := problem_of(parsed(line), number))
  ]
  shown = problems[:_MOST_SHOWN]
  if len(problems) > len(shown):
    shown.append(f"and {len(problems) - len(shown)} more of its lines")
  check(shown)


def _damaged(path: str | os.PathLike[str], line: int, problem: str) -> str:
  return (
    f"the journal {path} is damaged at line {line}: {problem}. Restore it, or "
    "move it away to start the search anew"
  )


def replay(backend: BaseJournalBackend, name: str) -> JournalStorage:
  """Opens the storage that a journal's entries build up.

  Raises:
    InputError: the entries do not fit together.
  """
  try:
    return JournalStorage(backend)
  except InputError:
    raise
  except (KeyError, ValueError, TypeError, AssertionError) as error:
    raise InputError(
      f"the journal {name} is damaged: its records do not fit together"
      f" ({type(error).__name__}: {error})"
    ) from error


def open_journal(path: str | os.PathLike[str]) -> JournalStorage:
  """Opens or creates a journal, repairing what a killed process left.

  Raises:
    InputError: something else than a journal is there, the journal is damaged
      elsewhere than in its last line, or its directory cannot be written.
  """
  try:
    # Before the lock: beside what is not ours not even that is made.
    check_journal_file(path)
    path = pathlib.Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = OwnedLock(str(path))
    lock.acquire()
    try:
      backend = _MendingBackend(str(path))
      _check_lines(path)
      _cut_torn_line(path)
    finally:
      lock.release()
  except OSError as error:
    raise InputError(
      f"cannot open the journal {path}: {error.strerror or error}"
    ) from error
  return replay(backend, str(path))


def read_journal(path: str | os.PathLike[str]) -> JournalStorage | None:
  """A journal to look at, None where nothing is there; writes nothing.

  Raises:
    InputError: the journal is damaged.
  """
  path = pathlib.Path(path)
  if not path.exists() or not path.stat().st_size:
    return None
  return replay(_MendingBackend(str(path)), str(path))
