"""Optuna's journal on a local file, made safe to be killed at any moment."""

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterator
from typing import IO, Any

from optuna.exceptions import OptunaError
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from jaxmerge import locks, process_liveness
from jaxmerge.bayesopt.study import records
from jaxmerge.errors import InputError, check

# Another program's lock that has not changed for this long is of a dead one: a
# write takes milliseconds. Optuna waits as long.
_GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.005
# Damaged lines that a message names.
_MOST_SHOWN = 3
# How Optuna writes a journal's first record.
_BEGINNING = b'{"op_code":0,"worker_id":"'
# No first record is as long; a file of another kind may be one long line.
_LONGEST_FIRST = 2**20
SQLITE = b"SQLite format 3\0"

# What Optuna raises at records of another form than its own.
_UNFIT = (
  ArithmeticError,
  AssertionError,
  AttributeError,
  LookupError,
  OptunaError,
  RuntimeError,
  TypeError,
  ValueError,
)


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


def is_file(path: str | os.PathLike[str]) -> bool:
  """Says whether a file is there; InputError where something else is."""
  try:
    mode = os.stat(path).st_mode
  except FileNotFoundError:
    if os.path.islink(path):
      raise InputError(
        f"{path} is a link to {os.readlink(path)}, where nothing is"
      ) from None
    return False
  if not stat.S_ISREG(mode):
    kind = "a directory" if stat.S_ISDIR(mode) else "no plain file"
    raise InputError(f"{path} is {kind}, where a study cannot be kept")
  return True


def check_journal_file(path: str | os.PathLike[str]) -> None:
  """Refuses a path where something else than a journal lies; writes nothing.

  Nothing may be there, an empty file, a file whose first line creates a study,
  or the beginning of such a line. OSError where it cannot be looked at.
  """
  if not is_file(path):
    return
  with open(path, "rb") as file:
    first = file.readline(_LONGEST_FIRST)
  if first.startswith(SQLITE):
    raise InputError(
      f"{path} is a SQLite database, not a journal; a study in it is named "
      f"sqlite:///{path}"
    )
  if first.endswith(b"\n"):
    record = records.parsed(first)
    is_ours = records.creates_study(record)
    if records.is_record(record) and not is_ours:
      raise InputError(
        f"the journal {path} is damaged at line 1, which creates no study: "
        "restore it, or name another place"
      )
  else:
    torn = first[: len(_BEGINNING)]
    is_ours = _BEGINNING.startswith(torn) and len(first) < _LONGEST_FIRST
  if not is_ours:
    raise InputError(
      f"{path} holds no study: its first line is no record of Optuna's journal."
      " It is left as it is; name another place, or restore it"
    )


class _FileJournal(BaseJournalBackend):
  """Optuna's journal, sealed where it is written and checked where it is read.

  It mends a line that a searcher died in, before it appends its own: else the
  two records would be glued together, and every searcher of the study, and
  every later one, would stop there.
  """

  def __init__(self, path: str):
    self._path = path
    self._read = (0, 0)  # whole lines that were read, and their bytes

  def append_logs(self, logs: list[dict[str, Any]]) -> None:
    with _locked(self._path), open(self._path, "ab+") as journal:
      for number, log in enumerate(logs, start=self.mend(journal) + 1):
        line = json.dumps(
          records.sealed({**log, records.LINE: number}), separators=(",", ":")
        )
        journal.write(line.encode() + b"\n")
      journal.flush()
      os.fsync(journal.fileno())

  def mend(self, journal: IO[bytes]) -> int:
    """Moves a torn last line to <path>.torn; returns the number of others.

    Nobody has read that line: readers leave one without an end.
    """
    count, start = self._read
    if start > os.fstat(journal.fileno()).st_size:  # another file is there
      count = start = 0
    journal.seek(start)
    data = journal.read()
    end = data.rfind(b"\n") + 1
    if end < len(data):
      check_journal_file(self._path)  # what is not ours is not ours to mend
      # The tail is safe on disk before the journal loses it.
      with open(f"{self._path}.torn", "ab") as torn:
        torn.write(data[end:] + b"\n")
        torn.flush()
        os.fsync(torn.fileno())
      journal.truncate(start + end)
      os.fsync(journal.fileno())
    return count + data.count(b"\n")

  def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
    count, start = self._read
    if count != log_number_from:
      count = start = 0
    with open(self._path, "rb") as journal:
      journal.seek(start)
      *lines, _ = journal.read().split(b"\n")
    found = [records.parsed(line) for line in lines]
    problems = [
      f"the journal {self._path} is damaged at line {number}: {problem}. "
      "Restore it, or move it away to start the search anew"
      for number, record in enumerate(found, start=count + 1)
      if (problem := records.problem_of(record, number))
    ]
    if more := problems[_MOST_SHOWN:]:
      problems[_MOST_SHOWN:] = [f"and {len(more)} more of its lines"]
    check(problems)
    self._read = (
      count + len(lines),
      start + sum(len(line) + 1 for line in lines),
    )
    return [records.bare(record) for record in found[log_number_from - count :]]


def replay(backend: BaseJournalBackend, name: str) -> JournalStorage:
  """Opens the storage that a journal's entries build up, if they fit."""
  try:
    storage = JournalStorage(backend)
    for study in storage.get_all_studies():
      number = storage.get_study_id_from_name(study.study_name)
      for trial in storage.get_all_trials(number, deepcopy=False):
        _check_trial(trial, len(study.directions))
    return storage
  except InputError:
    raise
  except _UNFIT as error:
    raise InputError(
      f"the journal {name} is damaged: its records do not fit together"
      f" ({type(error).__name__}: {error})"
    ) from error


def _check_trial(trial: FrozenTrial, num_values: int) -> None:
  """Raises ValueError at what Optuna takes from a journal unseen."""
  for name, value in trial.params.items():
    trial.distributions[name].to_internal_repr(value)
  values = trial.values or []
  are_numbers = all(isinstance(v, int | float) and v == v for v in values)
  is_told = trial.state == TrialState.COMPLETE
  if not are_numbers or (is_told and len(values) != num_values):
    raise ValueError(f"trial {trial.number} has the values {values}")


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
    with _locked(path), open(path, "ab+") as file:
      backend = _FileJournal(path)
      # All of it is looked at before anything is mended.
      storage = replay(backend, path)
      backend.mend(file)
  except OSError as error:
    raise InputError(
      f"cannot open the journal {path}: {error.strerror or error}"
    ) from error
  return storage


def read_journal(path: str | os.PathLike[str]) -> JournalStorage | None:
  """A journal to look at, None where nothing is there; writes nothing."""
  if not os.path.exists(path) or not os.path.getsize(path):
    return None
  return replay(_FileJournal(os.fspath(path)), os.fspath(path))
