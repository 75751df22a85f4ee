"""Tables of records: who may add to them, and what is said of a wrong name."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import pytest

from jaxmerge.errors import InputError
from jaxmerge.registry import Registry


@dataclasses.dataclass(frozen=True)
class Record:
  name: str
  function: Callable[[], int]


class NamedRecord(NamedTuple):
  name: str
  function: Callable[[], int]


def _file(number):
  """A user's file that registers a record."""
  source = f"def one():\n  return {number}\nrecord = Record('one', one)"
  return compile(source, f"file {number}", "exec")


def _run(code):
  names = {"Record": Record}
  exec(code, names)
  return names["record"]


@pytest.fixture
def table():
  return Registry("config.method", "jaxmerge.simplex")  # which registers none


def test_a_file_may_run_twice_and_another_may_not_take_its_name(table):
  table.register(_run(_file(1)))
  again = table.register(_run(_file(1)))
  assert table["one"] is again
  with pytest.raises(InputError, match="another 'one' already"):
    table.register(_run(_file(2)))
  assert table["one"].function() == 1


def test_a_wrong_name_is_told_the_right_ones(table):
  table.register(_run(_file(1)))
  table.register(Record("other", len))
  with pytest.raises(InputError) as error:
    table.find("othr")
  assert str(error.value) == (
    "unknown config.method 'othr', did you mean 'other'? known are one, other"
  )
  with pytest.raises(InputError, match=r"'x'; known are one, other$"):
    table.find("x")
  assert "x" not in table
  assert table.get("x") is None


def test_a_named_tuple_registers_too(table):
  record = NamedRecord("one", lambda: 1)
  again = NamedRecord("one", record.function)
  other = NamedRecord("one", lambda: 2)
  assert table.register(record) is record
  assert table.register(again) is again
  with pytest.raises(InputError, match="another 'one' already"):
    table.register(other)


def test_what_a_function_encloses_tells_records_apart(table):
  """One line of ours may make the records of many files."""

  def record_of(inner):
    return Record("one", lambda: inner())

  def other():
    return 2

  table.register(record_of(lambda: 1))
  with pytest.raises(InputError, match="another 'one' already"):
    table.register(record_of(other))
