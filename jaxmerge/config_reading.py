"""Reads what a config says as its dataclass, and lists what is wrong."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from jaxmerge.config_fields import (
  Key,
  PerInput,
  Row,
  all_rows,
  build,
  chosen_rows,
  flatten,
  names_at,
  own_keys,
  parts,
  rows,
  to_flat,
)
from jaxmerge.errors import check
from jaxmerge.old_names import NEW_NAMES

_T = TypeVar("_T")
_EXAMPLES = {
  str: "('a', 'b') or ('a',)",
  int: "(1, 2) or (1,)",
  float: "(0.3, 0.7) or (1.0,)",
}


def read(cls: type[_T], given: Any) -> _T:
  """Builds a section from what a config says; a missing key takes its default.

  Args:
    cls: the section.
    given: a mapping, as a ConfigDict, or an instance of the section.

  Raises:
    InputError: lists every unknown and renamed key, each value of another type
      or out of its range, and what the section's own `problems` finds.
  """
  found, problems = examine(cls, given)
  check(problems)
  assert found is not None
  return found


def examine(cls: type[_T], given: Any) -> tuple[_T | None, list[str]]:
  """Reads a config for a verb that has more to find wrong before it says so.

  Returns:
    The section, None where keys or types are wrong; all problems.
  """
  flat = to_flat(given) if isinstance(given, cls) else flatten(given)
  known = chosen_rows(cls, flat)
  problems = structure_problems(cls, flat)
  problems += _empty_parts(cls, given)
  problems += [
    f"missing config key config.{row.name}"
    for row in known.values()
    if _is_missing(row, flat)
  ]
  unused = []
  for row in all_rows(cls, flat).values():
    if row.name not in known and flat.get(row.name, row.default) != row.default:
      selector = row.selector.rpartition(".")[-1]
      chosen = flat.get(row.selector, known[row.selector].default)
      if chosen not in tuple(known[row.selector].key.choices):
        continue  # told as such
      unused.append(
        f"the {selector} {chosen!r} does not use config.{row.name}; leave it "
        f"at {row.default!r}"
      )
  if problems:
    return None, problems + unused
  found, problems = build(cls, flat), unused
  for place, part in parts(found, "config."):
    problems += range_problems(part, place)
    if hasattr(part, "problems"):
      problems += part.problems(place)
  return found, problems


def _empty_parts(cls: type, given: Any, prefix: str = "") -> Iterator[str]:
  """Names sections that only a config names, and that say nothing."""
  for name, value in given.items() if hasattr(given, "items") else ():
    path = f"{prefix}{name}."
    if not hasattr(value, "items") or len(value):
      yield from _empty_parts(cls, value, path)
      continue
    known = {row.name for row in rows(cls, given=[])}
    chosen = {row.name for row in rows(cls, given=[path])} - known
    if any(key.startswith(path) and key[len(path)] != "." for key in chosen):
      yield f"config.{path[:-1]} says nothing: it needs keys of its own"


def _is_missing(row: Row, flat: Mapping[str, Any]) -> bool:
  if row.default is dataclasses.MISSING:
    return flat.get(row.name) is None
  section, _, _ = row.name.rpartition(".")
  place = f"{section}.{row.key.unless}".lstrip(".")
  is_needed = row.key.unless and not names_at(place, flat)
  return bool(is_needed and not flat.get(row.name))


def structure_problems(
  cls: type, flat: Mapping[str, Any], prefix: str = "config."
) -> list[str]:
  """Lists unknown and renamed keys, and values of another type."""
  known = all_rows(cls, flat)
  templates = [row.name for row in rows(cls)]
  problems = []
  for name, value in flat.items():
    if name in known:
      if value is not None:
        problems += _type_problems(prefix + name, value, known[name].kind)
    elif any(row.startswith(f"{name}.") for row in [*known, *templates]):
      problems.append(f"{prefix}{name} must be a section of keys")
    else:
      problems.append(unknown_key(prefix + name, known))
  return problems


def range_problems(value: Any, prefix: str = "config.") -> list[str]:
  """Lists values of a section's own keys that are out of their ranges."""
  return [
    problem
    for name, inner, known in own_keys(value)
    for problem in _range_problems(prefix + name, inner, known)
  ]


def unknown_key(name: str, known: Iterable[str]) -> str:
  """The message for a key that there is not: its new name, or one like it.

  Args:
    name: as typed, with the flag's own name before the first dot.
    known: dotted names that there are.
  """
  flag, _, path = name.partition(".")
  known = list(known)
  if path in NEW_NAMES and NEW_NAMES[path].name in known:
    return f"config key {name} is now {flag}.{NEW_NAMES[path].name}"
  # By their last words: all names of a section begin alike.
  lasts = {other.rpartition(".")[-1]: other for other in known}
  near = difflib.get_close_matches(path.rpartition(".")[-1], lasts, n=1)
  meant = f"; did you mean {flag}.{lasts[near[0]]}?" if near else ""
  return f"unknown config key {name}{meant}"


def _type_problems(name: str, value: Any, kind: Any) -> list[str]:
  of_tuple = typing.get_args(kind)  # (the elements' type, ...)
  elements = [value]
  if of_tuple:
    is_one = isinstance(value, str) or (
      kind == PerInput and not isinstance(value, tuple | list)
    )
    elements = elements if is_one else value
    is_right = isinstance(elements, tuple | list) and all(
      _is_a(element, of_tuple[0]) for element in elements
    )
    wanted = f"a tuple of {of_tuple[0].__name__}, as {_EXAMPLES[of_tuple[0]]}"
    if kind == PerInput:
      wanted = "a number, or one for each input, as (0.5, 0.3)"
  else:
    is_right = _is_a(value, kind)
    wanted = kind.__name__
  if not is_right:
    return [f"{name} must be {wanted}, got {value!r}"]
  if any(isinstance(x, float) and not math.isfinite(x) for x in elements):
    numbers = "finite numbers" if of_tuple else "a finite number"
    return [f"{name} must be {numbers}, got {value}"]
  return []


def _is_a(value: Any, kind: type) -> bool:
  if isinstance(value, bool):
    return kind is bool
  if kind is float:
    return isinstance(value, int | float)
  return isinstance(value, kind)


def _range_problems(name: str, value: Any, known: Key) -> list[str]:
  choices = tuple(known.choices)
  if choices and isinstance(value, tuple | list):
    if not set(value) <= set(choices) or len(set(value)) < len(value):
      return [f"{name} must be different ones of {choices}, got {value}"]
  elif choices and value not in choices:
    near = difflib.get_close_matches(value, choices, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return [f"{name} must be one of {choices}, got {value!r}{meant}"]
  numbers = value if isinstance(value, tuple) else (value,)
  return [
    f"{name} must be {known.range}, got {number}"
    for number in numbers
    if isinstance(number, int | float) and not known.holds(number)
  ]
