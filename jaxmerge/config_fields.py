"""Sections of a config: frozen dataclasses that define each key once.

A field of a section is a key (type, default, range or choices, a line of help),
another section, sections by names that a config gives, or the knobs of a record
that one of the section's keys names:

  @dataclasses.dataclass(frozen=True)
  class MergeConfig:
    method: str = key("uniform", "how to merge", choices=METHODS)
    knobs: Any = knobs_of("method", METHODS)   # keys of the section like others
    mesh: MeshConfig = section(MeshConfig)
    parts: Mapping[str, Part] = sections(Part)

Flags, checks, --help, docs/config.md and the identity of runs and studies are
read from these. A config is flat here: values by dotted name.
"""

import dataclasses
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

_KEY = "key"
_KNOBS = "knobs"
_SECTION = "section"
_SECTIONS = "sections"
_FREE = "free"
# Stands for each of the names that a config gives to sections.
NAME = "NAME"

# Of a knob of a merge method: a number for all inputs, or one for each.
PerInput = float | tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Key:
  """Holds what is known of a key beside its type and default.

  Attributes:
    help: one line.
    at_least, at_most, above, below: bounds of a number, closed and open.
    choices: names that a text, or each text of a tuple, must be one of; read
      when a config is checked, so that a registry may grow.
    changes_numbers: the key is part of the identity of a run or study.
    unless: sections of which one may stand in place of the key, which must
      be given else.
  """

  help: str
  at_least: float | None = None
  at_most: float | None = None
  above: float | None = None
  below: float | None = None
  choices: Iterable[str] = ()
  changes_numbers: bool = True
  unless: str = ""

  @property
  def range(self) -> str:
    """The range in words; "" where there is none."""
    low = self.above if self.at_least is None else self.at_least
    high = self.below if self.at_most is None else self.at_most
    if high is not None:
      left = "(" if self.at_least is None else "["
      right = ")" if self.at_most is None else "]"
      return f"in {left}{_shown(low)}, {_shown(high)}{right}"
    if self.above == 0 or self.at_least == 1:
      return "positive"
    how = "at least" if self.above is None else "above"
    return f"{how} {_shown(low)}" if low is not None else ""

  @property
  def allowed(self) -> str:
    """The choices or the range in words; "" where anything goes."""
    choices = ", ".join(choice or "''" for choice in self.choices)
    return f"one of {choices}" if choices else self.range

  def holds(self, number: float) -> bool:
    return (
      (self.at_least is None or number >= self.at_least)
      and (self.at_most is None or number <= self.at_most)
      and (self.above is None or number > self.above)
      and (self.below is None or number < self.below)
    )


def _shown(bound: float | None) -> str:
  if bound is None:
    return "-inf"
  if bound < 2**16:
    return f"{bound:g}"
  power = round(math.log2(bound))
  less = int(2**power - bound)
  return f"2**{power}" + (f" - {less}" if less else "")


def key(
  default: Any = dataclasses.MISSING, help: str = "", **known: Any
) -> Any:
  """Defines a field of a section that a config may set.

  Without a default it must; `known` is what else a Key has.
  """
  return _field({_KEY: Key(help, **known)}, default=default)


def section(cls: type, changes_numbers: bool = True) -> Any:
  """Defines a field that is a section of its own.

  Without `changes_numbers` no key of it does, whatever the class says.
  """
  known = {_SECTION: cls, _FREE: not changes_numbers}
  return _field(known, default_factory=cls)


def sections(cls: type) -> Any:
  """Defines a field of sections of one class, by names that a config gives."""
  return _field({_SECTIONS: cls}, default_factory=dict)


def knobs_of(selector: str, records: Mapping[str, Any]) -> Any:
  """Defines a field for the knobs of a record: keys of the section itself.

  Args:
    selector: the section's key that names the record.
    records: by name; each has `knobs`, a frozen dataclass of keys.
  """
  return _field({_KNOBS: (selector, records)}, default=None)


def _field(metadata: Mapping[str, Any], **default: Any) -> Any:
  return dataclasses.field(metadata=metadata, kw_only=True, **default)


class Row(NamedTuple):
  """Describes a key by its dotted name.

  Attributes:
    name, kind, default, key: of the key; default MISSING: required.
    selector: of a record's knob, the dotted name of the key that chooses it.
    record: of a record's knob, the record's name.
  """

  name: str
  kind: Any
  default: Any
  key: Key
  selector: str = ""
  record: str = ""


def names_at(place: str, given: Iterable[str] | None) -> list[str]:
  """Names of the sections at a place, of which dotted names say keys.

  In their own order, whatever that of the config.
  """
  if given is None:
    return [NAME]
  start = f"{place}."
  return sorted(
    {
      name.removeprefix(start).partition(".")[0]
      for name in given
      if name.startswith(start)
    }
  )


def rows(
  cls: type, prefix: str = "", given: Iterable[str] | None = None
) -> Iterator[Row]:
  """Yields every key of a section, of those in it and of all records.

  Args:
    given: a config's dotted names, which name sections; None: NAME does.
  """
  kinds = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    name = prefix + field.name
    if _KEY in field.metadata:
      yield Row(name, kinds[field.name], field.default, field.metadata[_KEY])
    elif _SECTION in field.metadata:
      inside = rows(field.metadata[_SECTION], f"{name}.", given)
      yield from map(_free, inside) if field.metadata[_FREE] else inside
    elif _SECTIONS in field.metadata:
      for inner in names_at(name, given):
        yield from rows(field.metadata[_SECTIONS], f"{name}.{inner}.", given)
    elif _KNOBS in field.metadata:
      selector, records = field.metadata[_KNOBS]
      for record, value in records.items():
        for row in rows(value.knobs, prefix):
          yield row._replace(selector=prefix + selector, record=record)


def _free(row: Row) -> Row:
  return row._replace(key=dataclasses.replace(row.key, changes_numbers=False))


def chosen_rows(cls: type, given: Mapping[str, Any]) -> dict[str, Row]:
  """The keys that a config may set, by name; some of `given` select knobs."""
  found: dict[str, Row] = {}
  for row in rows(cls, given=given):
    # The selector's own row comes first.
    default = found[row.selector].default if row.record else ""
    if given.get(row.selector, default) == row.record or not row.record:
      found[row.name] = row
  return found


def all_rows(cls: type, given: Mapping[str, Any]) -> dict[str, Row]:
  """All keys by name, those that `given` chooses before others' of the name."""
  found = {row.name: row for row in rows(cls, given=given)}
  return found | chosen_rows(cls, given)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
  """Writes nested sections as `a.b` keys."""
  flat: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, Mapping) or hasattr(value, "to_dict"):
      flat.update(flatten(value, f"{prefix}{name}."))
    else:
      flat[prefix + name] = value
  return flat


def nested(flat: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
  """Inverts `flatten`."""
  found: dict[str, Any] = {}
  for name, value in flat.items():
    *sections, last = name.split(separator)
    place = found
    for part in sections:
      place = place.setdefault(part, {})
    place[last] = value
  return found


def own_keys(value: Any) -> Iterator[tuple[str, Any, Key]]:
  """Yields name, value and Key of the keys that a section itself has."""
  for field in dataclasses.fields(value):
    if _KEY in field.metadata:
      yield field.name, getattr(value, field.name), field.metadata[_KEY]


def to_flat(value: Any) -> dict[str, Any]:
  """The keys of a section, as a config file would say them, flat."""
  return {
    prefix + name: inner
    for prefix, part in parts(value)
    for name, inner, _ in own_keys(part)
  }


def identity(value: Any) -> dict[str, Any]:
  """The keys of a section that change numbers, flat."""
  flat = to_flat(value)
  known = rows(type(value), given=flat)
  free = {row.name for row in known if not row.key.changes_numbers}
  return {k: v for k, v in flat.items() if k not in free}


def build(cls: type, flat: Mapping[str, Any], prefix: str = "") -> Any:
  """Builds a section from a config of right keys and types."""
  values: dict[str, Any] = {}
  kinds = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    name = prefix + field.name
    if _SECTION in field.metadata:
      values[field.name] = build(field.metadata[_SECTION], flat, f"{name}.")
    elif _SECTIONS in field.metadata:
      values[field.name] = {
        inner: build(field.metadata[_SECTIONS], flat, f"{name}.{inner}.")
        for inner in names_at(name, flat)
      }
    elif _KNOBS in field.metadata:
      selector, records = field.metadata[_KNOBS]
      record = records.get(flat.get(prefix + selector, values[selector]))
      if record is not None:
        values[field.name] = build(record.knobs, flat, prefix)
    elif (value := flat.get(name, field.default)) is not None:
      values[field.name] = as_kind(value, kinds[field.name])
  return cls(**values)


def as_kind(value: Any, kind: Any) -> Any:
  """Converts to the tuple or the float that a key asks for.

  A list is a tuple of its elements, a text one of itself alone. A number for
  each input is, if there is one alone, that for all.
  """
  if kind == PerInput:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values[0] if len(values) == 1 else values
  if typing.get_args(kind):
    return (value,) if isinstance(value, str) else tuple(value)
  return float(value) if kind is float else value


def parts(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields a section and those in it, records' knobs too, with their prefix."""
  yield prefix, value
  for field in dataclasses.fields(value):
    inner = getattr(value, field.name)
    if _SECTION in field.metadata:
      yield from parts(inner, f"{prefix}{field.name}.")
    elif _SECTIONS in field.metadata:
      for name, each in inner.items():
        yield from parts(each, f"{prefix}{field.name}.{name}.")
    elif _KNOBS in field.metadata and inner is not None:
      yield from parts(inner, prefix)
