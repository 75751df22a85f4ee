"""Where a study lives: a journal file, a database or an object store."""

import os
import time
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage

from jaxmerge.bayesopt.journal import open_journal
from jaxmerge.bayesopt.object_journal import SCHEMES, open_object_journal
from jaxmerge.errors import InputError
from jaxmerge.shown import without_secrets

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
    ValueError,
  ) as error:
    reason = without_secrets(str(error), [address])
    raise InputError(
      f"cannot open the study storage {without_secrets(address)}: {reason}"
    ) from error


def address_problems(address: str) -> list[str]:
  """What is wrong with an address, as far as it says so itself.

  Args:
    address: as for open_storage; nothing is opened.
  """
  if "://" not in address or address.startswith(SCHEMES):
    return []
  import sqlalchemy.engine
  import sqlalchemy.exc

  shown = without_secrets(address)
  try:
    sqlalchemy.engine.make_url(address).get_dialect().import_dbapi()
  except sqlalchemy.exc.NoSuchModuleError as error:
    return [f"the study storage {shown} is of no known database: {error}"]
  except (sqlalchemy.exc.ArgumentError, ValueError) as error:
    reason = without_secrets(str(error), [address])
    return [f"the study storage {shown} is no address: {reason}"]
  except ImportError as error:
    return [f"the study storage {shown} needs a package: {error}"]
  return []


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
