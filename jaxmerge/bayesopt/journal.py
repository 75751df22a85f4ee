"""Optuna's journal on a local file, made safe to be killed at any moment."""

import fcntl
import json
import os
import pathlib
import time

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.storages.journal._storage import JournalOperation

from jaxmerge import owner
from jaxmerge.errors import InputError

# An owner that cannot be looked up (another host, another program) is taken
# for dead when its lock has not changed for this long; a write takes
# milliseconds.
_GRACE_SECONDS = 30.0


class OwnedLock(BaseJournalFileLock):
  """A lock file that says whose it is, so that a dead owner's is dropped.

  The lock is a symbolic link named <journal>.lock, as Optuna's own is (other
  Optuna programs respect it); its target, "host:pid:start", is its owner.
  """

  def __init__(self, journal: str):
    self._journal = journal
    self._lock = journal + ".lock"

  def acquire(self) -> bool:
    me = ":".join(map(str, owner.this_process()))
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
      if holder is not None and _is_abandoned(holder[0], waited):
        self._drop(holder)
        continue
      time.sleep(pause)
      pause = min(2 * pause, 0.1)

  def release(self) -> None:
    os.unlink(self._lock)

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


def _is_abandoned(target: str, waited_seconds: float) -> bool:
  parts = target.rsplit(":", 2)
  if len(parts) == 3 and parts[1].isdigit():
    holder = owner.Owner(parts[0], int(parts[1]), parts[2])
    if owner.is_here(holder):
      return not owner.is_alive(holder)
  return waited_seconds > _GRACE_SECONDS


def _cut_torn_line(path: pathlib.Path) -> None:
  """Cuts the file back to its last newline; the tail goes to <path>.torn."""
  data = path.read_bytes()
  end = data.rfind(b"\n") + 1
  if end == len(data):
    return
  # The tail is safe on disk before the journal loses it.
  with open(f"{path}.torn", "ab") as torn:
    torn.write(data[end:] + b"\n")
    torn.flush()
    os.fsync(torn.fileno())
  with open(path, "rb+") as journal:
    journal.truncate(end)
    os.fsync(journal.fileno())


def _check_lines(path: pathlib.Path) -> None:
  for number, line in enumerate(path.read_bytes().splitlines(), start=1):
    try:
      record = json.loads(line)
    except ValueError:
      record = None
    # Optuna skips, without a word, the records of a study never created.
    if not isinstance(record, dict) or (
      number == 1 and record.get("op_code") != JournalOperation.CREATE_STUDY
    ):
      raise InputError(
        f"the journal {path} is damaged at line {number}: move it away to"
        f" start the search anew, or restore it"
      )


def open_journal(path: str | os.PathLike[str]) -> JournalStorage:
  """Opens or creates a journal, repairing what a killed process left.

  Raises:
    InputError: the journal is damaged elsewhere than in its last line, or its
      directory cannot be written.
  """
  path = pathlib.Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    backend = JournalFileBackend(str(path), lock_obj=OwnedLock(str(path)))
    lock = OwnedLock(str(path))
    lock.acquire()
    try:
      _cut_torn_line(path)
      _check_lines(path)
    finally:
      lock.release()
  except OSError as error:
    raise InputError(
      f"cannot open the journal {path}: {error.strerror or error}"
    ) from error
  try:
    return JournalStorage(backend)
  except (KeyError, ValueError, TypeError, AssertionError) as error:
    raise InputError(
      f"the journal {path} is damaged: its records do not fit together"
      f" ({type(error).__name__}: {error})"
    ) from error
