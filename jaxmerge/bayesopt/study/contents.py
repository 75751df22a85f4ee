"""Tells a place for a study that is free from a study and from other data.

Nothing is written, locked or created here: what is not ours stays as it is.
"""

import contextlib
import os
import pathlib
import sqlite3
import stat
import urllib.parse

from jaxmerge.bayesopt.study.records import creates_study, is_record, parsed
from jaxmerge.errors import InputError

# Another searcher may hold the database for as long.
_BUSY_SECONDS = 60
# How Optuna writes a journal's first record.
_BEGINNING = b'{"op_code":0,"worker_id":"'
# No first record is as long; a file of another kind may be one long line.
_LONGEST_FIRST = 2**20
_SQLITE = b"SQLite format 3\0"
_COMPLETE = {
  "studies",
  "study_directions",
  "study_system_attributes",
  "study_user_attributes",
  "trials",
  "trial_heartbeats",
  "trial_intermediate_values",
  "trial_params",
  "trial_system_attributes",
  "trial_user_attributes",
  "trial_values",
  "version_info",
}
# Columns that tell Optuna's tables from others of the same name; they are the
# first that it creates.
_TABLES = {
  "studies": {"study_id", "study_name"},
  "version_info": {"version_info_id", "schema_version", "library_version"},
}


def check_journal_file(path: str | os.PathLike[str]) -> None:
  """Refuses a path where something else than a journal lies.

  Nothing may be there, an empty file, a file whose first line creates a study,
  or the beginning of such a line.

  Raises:
    InputError: something else is there.
    OSError: it cannot be looked at.
  """
  if not _is_file(path):
    return
  with open(path, "rb") as file:
    first = file.readline(_LONGEST_FIRST)
  if first.startswith(_SQLITE):
    raise InputError(
      f"{path} is a SQLite database, not a journal; a study in it is named "
      f"sqlite:///{path}"
    )
  if first.endswith(b"\n"):
    record = parsed(first) if first.startswith(b"{") else None
    is_ours = creates_study(record)
    if is_record(record) and not is_ours:
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


def _is_file(path: str | os.PathLike[str]) -> bool:
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


def check_sqlite_file(path: str) -> None:
  """Refuses a path where something else than a study's database lies.

  Nothing may be there, an empty file, a database without tables, or one with
  Optuna's.

  Raises:
    InputError: something else is there.
    OSError: it cannot be looked at.
  """
  if not _is_file(path):
    return
  with open(path, "rb") as file:
    start = file.read(len(_SQLITE))
  if not start:
    return
  if start != _SQLITE:
    raise InputError(
      f"{path} is no SQLite database; it is left as it is: name another place"
    )
  columns = {}
  with contextlib.suppress(sqlite3.DatabaseError):
    # Reads the file alone, takes no lock and writes nothing beside it.
    columns = _columns(path, "immutable=1")
  if not columns:  # or tables that another process is making just now
    try:
      columns = _columns(path, "mode=ro")
    except sqlite3.DatabaseError as error:
      raise InputError(
        f"{path} cannot be read as a SQLite database: {error}"
      ) from error
  is_ours = any(known <= columns.get(n, set()) for n, known in _TABLES.items())
  if columns and not is_ours:
    raise InputError(
      f"{path} is the database of another program (tables "
      f"{', '.join(sorted(columns)[:5])}), not of a study; it is left as it "
      "is: name another place"
    )


def holds_a_study(path: str) -> bool:
  """Says whether a SQLite file has all of Optuna's tables."""
  is_there = os.path.exists(path) and os.path.getsize(path) > 0
  return is_there and _columns(path, "mode=ro").keys() >= _COMPLETE


def _columns(path: str, how: str) -> dict[str, set[str]]:
  """Names of the columns of each table."""
  place = urllib.parse.quote(str(pathlib.Path(path).absolute()))
  connection = sqlite3.connect(
    f"file:{place}?{how}", uri=True, timeout=_BUSY_SECONDS
  )
  with contextlib.closing(connection):
    rows = connection.execute(
      "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c "
      "WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    columns: dict[str, set[str]] = {}
    for table, column in rows:
      columns.setdefault(table, set()).add(column)
  return columns
