"""Reads a verb's command line: flags, config files and the keys of configs.

Flags are defined when a verb runs, never at import, in a FlagValues of its
own; everything that is wrong with the words is told at once.
"""

import functools
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import tuple_parser

from jaxmerge.cli.config_files import (
  config_class,
  filled,
  run_config_file,
  strings_of,
)
from jaxmerge.cli.flag_values import text_problems
from jaxmerge.cli.help import Config, Text, help_text
from jaxmerge.config_fields import Row, all_rows, flatten, rows
from jaxmerge.config_reading import structure_problems, unknown_key
from jaxmerge.errors import Problems
from jaxmerge.files import expanded

# Flags that absl takes for its own, and reads files for.
_OF_ABSL = re.compile("--(flagfile|undefok)(=|$)")
_DEFINE: Mapping[Any, Callable[..., Any]] = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}
# Flags that name one path; --inputs names several.
_PATHS = ("workdir", "output", "input", "init_from")


def parse(
  argv: Sequence[str],
  *,
  doc: str,
  configs: Mapping[str, Config],
  strings: Mapping[str, Text],
  booleans: Mapping[str, str],
  read: Mapping[str, Callable[[str, str], Any]] = types.MappingProxyType({}),
) -> types.SimpleNamespace:
  """Parses a verb's command line.

  Args:
    argv: the words after the command.
    doc: printed by --help.
    configs: config flags with the verb whose config it is and their default
      file, None: required.
    strings: string flags with default and help; default None: required.
    booleans: boolean flags, all false by default, with help.
    read: for string flags that are no plain text, functions of the flag's name
      and text, as `split_list`; the text may be empty.

  Returns:
    One attribute per flag; a config flag's is its ConfigDict of all keys.

  Raises:
    InputError: lists every unknown flag, unknown config key and missing flag.
    SystemExit: --help was asked for.
  """
  if {"--help", "-h", "--helpfull"} & set(argv):
    print(help_text(doc, configs, strings, booleans))
    raise SystemExit(0)
  defaults = {name: file for name, (_, file) in configs.items()}
  defaults |= {name: default for name, (default, _) in strings.items()}
  words = _Words(argv, defaults)
  for name, default in defaults.items():
    words.define(str, name, default)
  for name in booleans:
    words.define(bool, name, False)
  words.take()
  given = {name: words.value(name) for name in [*strings, *booleans]}
  problems = words.problems
  found = {
    name: _config(words, name, verb) for name, (verb, _) in configs.items()
  }
  words.refuse_the_rest(found)
  for name, default in defaults.items():
    if name not in read or default is None:
      words.refuse_empty(name, default)
  for name, config in found.items():
    problems.extend(text_problems(strings_of(config or {}, name)))
  for name in strings:
    given[name] = _at_home(name, given[name] or "", problems)
    parts = given[name].split(",")
    problems.extend(text_problems((f"--{name}", part) for part in parts))
  for name, reader in read.items():
    given[name] = problems(functools.partial(reader, name, given[name]))
  problems.check()
  return types.SimpleNamespace(**given, **found)


class _Words:
  """The words that are typed, and the flags that they may set.

  Args:
    argv: the words.
    names: of the flags that take a value, which may be the next word.
  """

  def __init__(self, argv: Sequence[str], names: Iterable[str]):
    self.problems = Problems()
    self._flags = flags.FlagValues()
    self._left: list[str] = []
    previous = ""
    for word in argv:
      name = previous.lstrip("-").partition(".")[0]
      takes_value = previous.startswith("-") and "=" not in previous
      if takes_value and name in names and not word.startswith("--"):
        self._left[-1] += f"={word}"
      else:
        dashes = "--" if word.startswith("-") else ""
        self._left.append(dashes + word.lstrip("-"))
      previous = self._left[-1]
    bare = re.compile(rf"--({'|'.join(names)})\.[^=]*")
    for word in filter(bare.fullmatch, self._left):
      self.problems.add(f"write {word}=VALUE")
    self._left = [word for word in self._left if not bare.fullmatch(word)]

  def define(self, kind: Any, name: str, default: Any = None) -> None:
    """Defines a flag of a type, or of a tuple of it."""
    if kind in _DEFINE:
      _DEFINE[kind](name, default, "", flag_values=self._flags)
    else:
      parser = tuple_parser.TupleParser()
      flags.DEFINE(parser, name, default, "", flag_values=self._flags)

  def take(self) -> None:
    """Parses the words for which there is a flag."""
    words, self._left = self._left, []
    for word in words:  # one by one: absl stops at the first that it refuses
      try:
        if _OF_ABSL.match(word):
          self._left.append(word)
        else:
          self._left += self._flags(["jaxmerge", word], known_only=True)[1:]
      except flags.Error as error:
        self.problems.add(str(error).strip())

  def value(self, name: str) -> Any:
    return self._flags[name].value

  def keys(self, config: str, found: Iterable[Row]) -> dict[str, Any]:
    """Values of a config's keys that are typed, by name."""
    names = [row.name for row in found]
    for row in found:
      self.define(row.kind, f"{config}.{row.name}")
    self.take()
    typed = {name: self.value(f"{config}.{name}") for name in names}
    return {name: value for name, value in typed.items() if value is not None}

  def refuse_the_rest(
    self, configs: Mapping[str, config_dict.ConfigDict | None]
  ) -> None:
    """Tells what no flag has taken; keys of no config only where it loads."""
    for word in self._left:
      flag = word.lstrip("-").partition("=")[0]
      name, dot, _ = flag.partition(".")
      if not (word.startswith("-") and dot and name in configs):
        kind = "flag" if word.startswith("-") else "argument"
        self.problems.add(f"unknown {kind} {word}")
      elif (config := configs[name]) is not None:
        self.problems.add(unknown_key(flag, flatten(config)))

  def refuse_empty(self, name: str, default: str | None) -> None:
    text = self.value(name) or ""
    if default is None and not text.strip():
      self.problems.add(f"flag --{name} is required")
    elif default and not text:
      self.problems.add(f"flag --{name} is empty; its default is {default}")


def _config(
  words: _Words, name: str, verb: str
) -> config_dict.ConfigDict | None:
  """The config of a flag with every key, as its file and the words say them.

  Returns:
    None where the file is at fault, which the words' problems then tell.
  """
  path = words.value(name) or ""
  if not path.strip():
    return None
  problems, cls = words.problems, config_class(verb)
  flat = problems(lambda: run_config_file(path, verb))
  if flat is None:
    return None
  # Other keys depend on those such as --config.optimizer.name.
  flat |= words.keys(name, [row for row in rows(cls) if not row.record])
  wrong = structure_problems(cls, flat, f"{name}.")
  if wrong:
    problems.extend(wrong)
    return None
  knobs = [row for row in all_rows(cls, flat).values() if row.record]
  return filled(cls, flat | words.keys(name, knobs))


def _at_home(name: str, text: str, problems: Problems) -> str:
  """A flag's text with the home directory for the `~` of each path in it.

  The shell leaves it where it stands behind a "=".
  """
  if name not in _PATHS and name != "inputs":
    return text
  paths = text.split(",") if name == "inputs" else [text]
  return ",".join(
    problems(functools.partial(expanded, path)) or path for path in paths
  )
