"""Storages of studies: a journal file, a database or an object store."""

import contextlib
import os
import sqlite3
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage

from jaxmerge.bayesopt.study.contents import (
  check_journal_file,
  check_sqlite_file,
  holds_a_study,
)
from jaxmerge.bayesopt.study.journal import open_journal, read_journal
from jaxmerge.bayesopt.study.object_journal import SCHEMES, open_object_journal
from jaxmerge.errors import InputError
from jaxmerge.files import expanded
from jaxmerge.redaction import without_secrets

# Searchers hold SQLite's lock for milliseconds; a busy disk may add seconds.
_BUSY: dict[str, Any] = {"connect_args": {"timeout": 120}}
_ATTEMPTS = 5
# With one slash or none they would name a file.
_SCHEMES = ("gs", "s3", "file", "sqlite", "postgresql", "mysql", "redis")


def open_storage(storage: str | os.PathLike[str]) -> BaseStorage:
  """Opens the storage at an address, created if it is not there.

  Args:
    storage: path of a journal file, a database URL, or a gs://, s3:// or
      file:// address under which a journal has one object an entry.

  Raises:
    InputError: the storage is damaged or cannot be reached, or something else
      than a study is there; that stays as it is.
  """
  address = check_storage(storage)
  if "://" not in address:
    return open_journal(address)
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

  Returns:
    None where nothing is there yet, or the address is not of this machine.

  Raises:
    InputError: as open_storage.
  """
  address = check_storage(storage)
  if "://" not in address:
    return read_journal(address)
  with _input_errors(address):
    path = _sqlite_path(address)
    # Optuna would make what is missing of its tables.
    return _connect(address, _BUSY) if path and holds_a_study(path) else None


def check_storage(storage: str | os.PathLike[str]) -> str:
  """Refuses an address where something else than a study lies.

  Only what lies on this machine is looked at, and nothing is written.

  Returns:
    The address, with the home directory for a `~`.

  Raises:
    InputError: something else is there, or it cannot be read.
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
      check_journal_file(address)
    elif scheme == "file":
      folder = rest.removeprefix("//")
      if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(
          f"{folder} is no directory, as a study at {address} is"
        )
    elif path := _sqlite_path(address):
      check_sqlite_file(path)
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


def address_problems(address: str) -> list[str]:
  """Lists what is wrong with the text of an address; opens nothing.

  Args:
    address: as for open_storage.
  """
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


def _connect(url: str, engine_kwargs: dict[str, Any]) -> RDBStorage:
  """Opens a database; another searcher may be creating its tables just now."""
  import sqlalchemy.exc

  for attempt in range(1, _ATTEMPTS + 1):
    try:
      return RDBStorage(url, engine_kwargs=dict(engine_kwargs))
    except sqlalchemy.exc.DBAPIError:
      if attempt == _ATTEMPTS:
        raise
      time.sleep(0.1 * attempt)
  raise AssertionError
