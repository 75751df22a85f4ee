"""Tables of records by name, to which a file of the user's adds its own.

Registering is importing: a config file is Python and imports that file.
"""

import difflib
import importlib
import pkgutil
import types
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from jaxmerge.errors import InputError


class Named(Protocol):
  """A frozen dataclass or a named tuple that registers under its name."""

  @property
  def name(self) -> str: ...


R = TypeVar("R", bound=Named)


class Registry(Mapping[str, R], Generic[R]):
  """Records by name, those of a package and those of the user.

  Args:
    key: the config key that names one, for messages.
    package: its modules register their records; they are imported when the
      table is first used. "": none does.
  """

  def __init__(self, key: str, package: str = ""):
    self._key = key
    self._package = package
    self._records: dict[str, R] = {}
    self._is_loaded = False

  def register(self, record: R) -> R:
    """Adds a record; a file that runs twice may add its own again.

    Raises:
      InputError: another record has that name.
    """
    records = self._loaded()
    known = records.get(record.name, record)
    if known != record and _written_at(known) != _written_at(record):
      raise InputError(f"{self._key}: there is another {record.name!r} already")
    records[record.name] = record
    return record

  def find(self, name: str) -> R:
    """The record of that name; InputError names those that there are."""
    records = self._loaded()
    if name in records:
      return records[name]
    near = difflib.get_close_matches(str(name), records, 1)
    meant = f", did you mean {near[0]!r}?" if near else ";"
    raise InputError(
      f"unknown {self._key} {name!r}{meant} known are {', '.join(records)}"
    )

  def __getitem__(self, name: str) -> R:
    return self._loaded()[name]

  def __iter__(self) -> Iterator[str]:
    return iter(sorted(self._loaded()))  # whatever was imported first

  def __len__(self) -> int:
    return len(self._loaded())

  def _loaded(self) -> dict[str, R]:
    if self._package and not self._is_loaded:
      self._is_loaded = True  # the modules themselves come here again
      package = importlib.import_module(self._package)
      for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{self._package}.{module.name}")
    return self._records


def _written_at(record: Any) -> list[tuple[str, str]]:
  """The places of a record's functions and classes, with what they enclose."""
  values = record if isinstance(record, tuple) else vars(record).values()
  enclosed = [
    cell.cell_contents
    for value in values
    if isinstance(value, types.FunctionType)
    for cell in value.__closure__ or ()
  ]
  return [place for value in (*values, *enclosed) for place in _place(value)]


def _place(value: Any) -> Iterator[tuple[str, str]]:
  if isinstance(value, type):
    yield value.__module__, value.__qualname__
  elif isinstance(value, types.FunctionType):
    yield value.__code__.co_filename, str(value.__code__.co_firstlineno)
