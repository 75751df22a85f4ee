"""Storages of studies: a journal file, a database or an object store."""

import contextlib
import os
import pathlib
import sqlite3
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage

from jaxmerge.bayesopt.study import journal
from jaxmerge.bayesopt.study.object_journal import SCHEMES, open_object_journal
from jaxmerge.errors import InputError
from jaxmerge.files import expanded
from jaxmerge.redaction import without_secrets

# Searchers hold SQLite's lock for milliseconds; a busy disk may add seconds.
_BUSY: dict[str, Any] = {"connect_args": {"timeout": 120}}
_ATTEMPTS = 5
# Another searcher may hold the database for as long.
_BUSY_SECONDS = 60
# Columns that tell Optuna's tables from others of the same name; they are the
# first that it creates.
_TABLES = {
  "studies": {"study_id", "study_name"},
  "version_info": {"version_info_id", "schema_version", "library_version"},
}
# Optuna makes it when all the others are there.
_LAST_TABLE = "alembic_version"
# With one slash or none they would name a file.
_SCHEMES = ("gs", "s3", "file", "sqlite", "postgresql", "mysql", "redis")


def open_storage(storage: str | os.PathLike[str] | None) -> BaseStorage:
  """Opens the storage at an address, created if it is not there.

  Args:
    storage: path of a journal file, a database URL, or a gs://, s3:// or
      file:// address under which a journal has one object an entry; None: a
      new one in memory.

  Raises:
    InputError: the storage is damaged or cannot be reached, or something else
      than a study is there; that stays as it is.
  """
  if storage is None:
    return InMemoryStorage()
  address = check_storage(storage)
  if "://" not in address:
    return journal.open_journal(address)
  if address.startswith(SCHEMES):
    return open_object_journal(address)
  with _input_errors(address):
    return _open_database(address)


@contextlib.contextmanager
def _input_errors(address: str) -> Iterator[None]:
  """Raises what a bad address or storage raises as InputError."""
  # SQLAlchemy comes with Optuna.
  import sqlalchemy.exc

  try:
    yield
  except InputError:
    raise
  except (
    sqlalchemy.exc.SQLAlchemyError,
    StorageInternalError,
    sqlite3.Error,
    ImportError,
    OSError,
    RuntimeError,
    ValueError,
  ) as error:
    reason = str(getattr(error, "strerror", None) or error)
    raise InputError(
      f"cannot open the study storage {without_secrets(address)}: "
      f"{without_secrets(reason, [address])}"
    ) from error


def existing_storage(storage: str | os.PathLike[str]) -> BaseStorage | None:
  """The storage at an address on this machine, to look at; writes nothing.

  None where nothing is there yet, or the address is not of this machine.
  InputError as open_storage.
  """
  address = check_storage(storage)
  if "://" not in address:
    return journal.read_journal(address)
  with _input_errors(address):
    path = _sqlite_path(address)
    is_there = path and os.path.exists(path)
    if not is_there or _LAST_TABLE not in _columns(path, "mode=ro"):
      return None
    return _connect(address, _BUSY, skip_table_creation=True)


def check_storage(storage: str | os.PathLike[str]) -> str:
  """Refuses an address where something else than a study lies.

  Only what lies on this machine is looked at, and nothing is written. Returns
  the address, with the home directory for a `~`.
  """
  address = _at_home(os.fspath(storage))
  scheme, colon, rest = address.partition(":")
  if colon and scheme in _SCHEMES and not rest.startswith("//"):
    raise InputError(
      f"the study storage {without_secrets(address)} is no address; write "
      f"{scheme}://..."
    )
  with _input_errors(address):
    if "://" not in address:
      journal.check_journal_file(address)
    elif scheme == "file":
      folder = rest.removeprefix("//")
      if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(
          f"{folder} is no directory, as a study at {address} is"
        )
    elif path := _sqlite_path(address):
      _check_sqlite_file(path)
  return address


def _at_home(address: str) -> str:
  """With the home directory for a `~` at the beginning of a local path."""
  scheme, mark, rest = address.partition("://")
  if not mark:
    return expanded(address)
  if scheme.startswith("sqlite") and rest.startswith("/~"):
    return f"{scheme}:///{expanded(rest[1:])}"
  return f"{scheme}://{expanded(rest)}" if scheme == "file" else address


def _sqlite_path(address: str) -> str:
  """The file of a SQLite address; "" of another one, or in memory."""
  import sqlalchemy.engine
  import sqlalchemy.exc

  try:
    url = sqlalchemy.engine.make_url(address)
  except sqlalchemy.exc.ArgumentError:
    return ""  # opening it will say why
  path = url.database or ""
  if url.get_backend_name() != "sqlite" or path == ":memory:":
    return ""
  if path.startswith("file:"):  # SQLite's own form of an address
    parts = urllib.parse.urlsplit(path)
    is_memory = "memory" in (url.query.get("mode"), parts.path.strip(":"))
    return "" if is_memory else urllib.parse.unquote(parts.path)
  return path


def _check_sqlite_file(path: str) -> None:
  """Refuses a path where something else than a study's database lies.

  Nothing may be there, an empty file, a database without tables, or one with
  Optuna's.
  """
  if not journal.is_file(path):
    return
  with open(path, "rb") as file:
    start = file.read(len(journal.SQLITE))
  if not start:
    return
  if start != journal.SQLITE:
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


def address_problems(address: str) -> list[str]:
  """Lists what is wrong with the text of an address; opens nothing."""
  if "://" not in address or address.startswith(SCHEMES):
    return []
  import sqlalchemy.engine
  import sqlalchemy.exc

  shown = f"the study storage {without_secrets(address)}"
  try:
    sqlalchemy.engine.make_url(address).get_dialect().import_dbapi()
  except sqlalchemy.exc.NoSuchModuleError as error:
    return [f"{shown} is of no known database: {error}"]
  except (sqlalchemy.exc.ArgumentError, ValueError) as error:
    return [f"{shown} is no address: {without_secrets(str(error), [address])}"]
  except ImportError as error:
    return [f"{shown} needs a package: {error}"]
  if address.startswith("sqlite") and not _sqlite_path(address):
    return [f"{shown} is in memory: the study would be lost"]
  return []


def _open_database(url: str) -> RDBStorage:
  import sqlalchemy.event

  if not url.startswith("sqlite"):
    # A connection may be cut during a long evaluation.
    return _connect(url, {"pool_pre_ping": True})
  storage = _connect(url, _BUSY)
  # SQLite knows no SELECT ... FOR UPDATE, with which Optuna lets one caller
  # only make a waiting trial running: there two would. Every transaction
  # takes the write lock before its first read instead.
  sqlalchemy.event.listen(
    storage.engine,
    "begin",
    lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"),
  )
  return storage


def _connect(
  url: str, engine_kwargs: dict[str, Any], **kwargs: Any
) -> RDBStorage:
  """Opens a database; another searcher may be creating its tables just now."""
  import sqlalchemy.exc

  for attempt in range(1, _ATTEMPTS):
    with contextlib.suppress(sqlalchemy.exc.DBAPIError):
      return RDBStorage(url, dict(engine_kwargs), **kwargs)
    time.sleep(0.1 * attempt)
  return RDBStorage(url, dict(engine_kwargs), **kwargs)
