"""Where a study lives: a journal file, a database or an object store."""

import os
import re
import time
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage

from jaxmerge.bayesopt.journal import open_journal
from jaxmerge.bayesopt.object_journal import SCHEMES, open_object_journal
from jaxmerge.errors import InputError

# Searchers hold SQLite's lock for milliseconds; a busy disk may add seconds.
_BUSY_SECONDS = 120
_ATTEMPTS = 5


def open_storage(storage: str | os.PathLike[str]) -> BaseStorage:
  """Opens the storage at an address, created if it is not there.

  Args:
    storage: path of a journal file, a database URL, or a gs://, s3:// or
      file:// address under which a journal has one object an entry.

  Raises:
    InputError: the storage is damaged or cannot be reached.
  """
  address = os.fspath(storage)
  if "://" not in address:
    return open_journal(address)
  if address.startswith(SCHEMES):
    return open_object_journal(address)
  # SQLAlchemy comes with Optuna; its errors are those of a bad URL.
  import sqlalchemy.exc

  try:
    return _open_database(address)
  except (
    sqlalchemy.exc.SQLAlchemyError,
    StorageInternalError,
    ImportError,
    RuntimeError,
  ) as error:
    raise InputError(
      f"cannot open the study storage {without_password(address)}: {error}"
    ) from error


def without_password(text: str) -> str:
  """A text with the passwords of its addresses hidden."""
  # Up to the last "@": a password may hold one.
  return re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)


def _open_database(url: str) -> RDBStorage:
  import sqlalchemy.event

  if not url.startswith("sqlite"):
    # A connection may be cut during a long evaluation.
    return _connect(url, {"pool_pre_ping": True})
  storage = _connect(url, {"connect_args": {"timeout": _BUSY_SECONDS}})
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
