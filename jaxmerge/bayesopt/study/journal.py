"""Optuna's journal on a local file, made safe to be killed at any moment."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Generator, Iterator
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from jaxmerge import locks, process_liveness
from jaxmerge.bayesopt.study.contents import check_journal_file
from jaxmerge.bayesopt.study.records import (
  bare,
  parsed,
  problem_of,
  sealed_line,
)
from jaxmerge.errors import InputError, check

# Another program's lock that has not changed for this long is of a dead one: a
# write takes milliseconds. Optuna waits as long.
_GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.005
# Damaged lines that a message names.
_MOST_SHOWN = 3


@contextlib.contextmanager
def _locked(journal: str) -> Iterator[None]:
  """Holds a journal's lock while the block runs.

  Searchers exclude each other by the operating system's lock on
  <journal>.flock; it is free as soon as its holder is dead. Whoever has it also
  takes <journal>.lock, the symbolic link by which other Optuna programs, and
  earlier versions of this one, lock a journal.
  """
  with locks.taken(f"{journal}.flock", poll_seconds=_POLL_SECONDS):
    link = f"{journal}.lock"
    # Neither an Optuna program nor an earlier version takes this for its own.
    mine = f"jaxmerge@{process_liveness.this_process().host}"
    _take(link, mine)
    try:
      yield
    finally:
      # Whoever stood still for too long finds another's link, or none.
      held = _holder(link)
      if held is not None and held[0] == mine:
        os.unlink(link)


def _take(link: str, mine: str) -> None:
  """Makes the link, when that of another program is gone or abandoned."""
  seen: tuple[str, float] | None = None
  since = time.monotonic()
  while True:
    try:
      os.symlink(mine, link)
      return
    except FileExistsError:
      holder = _holder(link)
    if holder != seen:
      seen, since = holder, time.monotonic()
    # A searcher of this host that made it would hold the other lock: it died.
    dead = holder is not None and holder[0] == mine
    if dead or time.monotonic() - since > _GRACE_SECONDS:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(link)
    else:
      time.sleep(_POLL_SECONDS)


def _holder(link: str) -> tuple[str, float] | None:
  try:
    return os.readlink(link), os.lstat(link).st_mtime
  except FileNotFoundError:
    return None
  except OSError as error:
    raise InputError(
      f"{link} is in the way of the journal's lock: remove it"
    ) from error


class _MendingBackend(JournalFileBackend):
  """Seals what it writes, and checks what it reads.

  It mends a line that a searcher died in, before it appends its own: else the
  two records would be glued together, and every searcher of the study, and
  every later one, would stop there.
  """

  def __init__(self, path: str):
    super().__init__(path)
    self._path = path
    self._counted = (0, 0)  # bytes of the file, and the whole lines in them

  def append_logs(self, logs: list[dict[str, Any]]) -> None:
    with _locked(self._path):
      # Nobody has read the torn line: readers leave a line without an end.
      _cut_torn_line(self._path)
      with open(self._path, "ab+") as journal:
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

  def read_logs(self, log_number_from: int) -> Generator[dict[str, Any]]:
    line = log_number_from
    try:
      for record in super().read_logs(log_number_from):
        line += 1
        if problem := problem_of(record, line):
          raise InputError(_damaged(self._path, line, problem))
        yield bare(record)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
      line += 1
      raise InputError(_damaged(self._path, line, "it is no JSON")) from error


def _cut_torn_line(path: str) -> None:
  """Cuts the file back to its last newline; the tail goes to <path>.torn."""
  with open(path, "ab+") as journal:
    if journal.tell():
      journal.seek(-1, os.SEEK_END)
      if journal.read(1) != b"\n":
        check_journal_file(path)  # what is not ours is not ours to mend
        journal.seek(0)
        data = journal.read()
        end = data.rfind(b"\n") + 1
        # The tail is safe on disk before the journal loses it.
        with open(f"{path}.torn", "ab") as torn:
          torn.write(data[end:] + b"\n")
          torn.flush()
          os.fsync(torn.fileno())
        journal.truncate(end)
        os.fsync(journal.fileno())


def _check_lines(path: str) -> None:
  """Refuses a journal with a damaged line; the one that is torn is none."""
  *lines, _ = pathlib.Path(path).read_bytes().split(b"\n")
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
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with _locked(path):
      backend = _MendingBackend(path)
      _check_lines(path)
      _cut_torn_line(path)
  except OSError as error:
    raise InputError(
      f"cannot open the journal {path}: {error.strerror or error}"
    ) from error
  return replay(backend, path)


def read_journal(path: str | os.PathLike[str]) -> JournalStorage | None:
  """A journal to look at, None where nothing is there; writes nothing.

  Raises:
    InputError: the journal is damaged.
  """
  if not os.path.exists(path) or not os.path.getsize(path):
    return None
  return replay(_MendingBackend(os.fspath(path)), os.fspath(path))
