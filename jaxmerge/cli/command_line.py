"""Reads a verb's command line: flags, config files and the keys of configs.

Flags are defined when a verb runs, never at import, in a FlagValues of its
own; everything that is wrong with the words is told at once.
"""

import functools
import importlib.util
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import tuple_parser

from jaxmerge.cli.config_docs import Config, Text, help_text
from jaxmerge.cli.config_files import config_class, filled, run_config_file
from jaxmerge.config_fields import Row, all_rows, flatten, rows
from jaxmerge.config_reading import structure_problems, unknown_key
from jaxmerge.errors import InputError, Problems, check
from jaxmerge.files import expanded
from jaxmerge.parallel.clusters import FLAGS as JOB
from jaxmerge.redaction import without_secrets

# Flags that absl takes for its own, and reads files for.
_OF_ABSL = re.compile("--(flagfile|undefok)(=|$)")
_DEFINE: Mapping[Any, Callable[..., Any]] = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}
_PATHS = ("workdir", "output", "input", "inputs", "init_from")
# Help of a verb's flag --inputs.
INPUTS = (
  "step directories, workdir@step, workdir@step:ema (an average that a run has "
  "kept) or Hugging Face folders, comma-separated"
)
_LONGEST_NAME = 255
_LONGEST_PATH = 4095
# Schemes of object stores: the package that opens each, and our extra.
_STORES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}


def parse(
  argv: Sequence[str],
  *,
  doc: str,
  configs: Mapping[str, Config],
  strings: Mapping[str, Text],
  booleans: Mapping[str, str],
  records: Mapping[str, Any] = types.MappingProxyType({}),
) -> tuple[types.SimpleNamespace, dict[str, str]]:
  """Parses a verb's command line.

  Args:
    argv: the words after the command.
    doc: printed by --help.
    configs: config flags with the verb whose config it is and their default
      file, None: required.
    strings: string flags with default and help; default None: required. The
      text of `inputs` and the like becomes a list.
    booleans: boolean flags, all false by default, with help.
    records: whose summaries --help lists behind doc.

  Returns:
    One attribute per flag, a config flag's its ConfigDict of all keys; and the
    flags of parallel.clusters, which every verb has, as typed.

  Raises:
    InputError: lists every unknown flag, unknown config key and missing flag.
    SystemExit: --help was asked for.
  """
  strings = {**strings, **{name: ("", told) for name, told in JOB.items()}}
  defaults = {name: file for name, (_, file) in configs.items()}
  defaults |= {name: default for name, (default, _) in strings.items()}
  words = _Words(argv, defaults, booleans)
  if {"--help", "-h", "--helpfull"} & set(argv):
    problems = Problems()
    for name, (verb, _) in configs.items():  # they may register records
      if words.value(name):
        problems(functools.partial(run_config_file, words.value(name), verb))
    print(help_text(doc, records, configs, strings, booleans))
    problems.check()
    raise SystemExit(0)
  problems = words.problems
  found = {
    name: _config(words, name, verb) for name, (verb, _) in configs.items()
  }
  words.refuse_the_rest(found)
  for name, default in defaults.items():
    text = words.value(name) or ""
    if default is None and not text.strip():
      problems.add(f"flag --{name} is required")
    elif default and not text and name not in _READ:
      problems.add(f"flag --{name} is empty; its default is {default}")
  for name, config in found.items():
    for key, value in flatten(config or {}).items():
      texts = value if isinstance(value, tuple) else (value,)
      problems.extend(text_problems(f"{name}.{key}", texts))
  given = {name: words.value(name) for name in [*strings, *booleans]}
  for name in strings:
    given[name] = _read(name, given[name] or "", problems)
  problems.check()
  job = {name: given.pop(name) for name in JOB}
  return types.SimpleNamespace(**given, **found), job


def _read(name: str, text: str, problems: Problems) -> Any:
  """A flag's value from its text."""
  parts = text.split(",") if name in _READ else [text]
  if name in _PATHS:  # the shell leaves a ~ behind a "="
    homes = [problems(functools.partial(expanded, part)) for part in parts]
    parts = [home or part for home, part in zip(homes, parts)]
  problems.extend(text_problems(f"--{name}", parts))
  text = ",".join(parts)
  return problems(lambda: _READ[name](name, text)) if name in _READ else text


class _Words:
  """The words that are typed, and the flags that they may set."""

  def __init__(
    self,
    argv: Sequence[str],
    texts: Mapping[str, str | None],
    booleans: Iterable[str],
  ):
    self.problems = Problems()
    self._flags = flags.FlagValues()
    self._left: list[str] = []
    previous = ""
    for word in argv:
      name = previous.lstrip("-").partition(".")[0]
      takes_value = previous.startswith("-") and "=" not in previous
      # The value of one of these flags may be the next word.
      if takes_value and name in texts and not word.startswith("--"):
        self._left[-1] += f"={word}"
      else:
        dashes = "--" if word.startswith("-") else ""
        self._left.append(dashes + word.lstrip("-"))
      previous = self._left[-1]
    bare = re.compile(rf"--({'|'.join(texts)})\.[^=]*")
    for word in filter(bare.fullmatch, self._left):
      self.problems.add(f"write {word}=VALUE")
    self._left = [word for word in self._left if not bare.fullmatch(word)]
    for name, default in texts.items():
      self.define(str, name, default)
    for name in booleans:
      self.define(bool, name, False)
    self.take()

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

  def keys(self, config: str, found: Sequence[Row]) -> dict[str, Any]:
    """Values of a config's keys that are typed, by name."""
    for row in found:
      self.define(row.kind, f"{config}.{row.name}")
    self.take()
    typed = {row.name: self.value(f"{config}.{row.name}") for row in found}
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


def _config(
  words: _Words, name: str, verb: str
) -> config_dict.ConfigDict | None:
  """The config of a flag with every key, as its file and the words say them.

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
  plain = [row for row in rows(cls, given=flat) if not row.record]
  flat |= words.keys(name, plain)
  if wrong := structure_problems(cls, flat, f"{name}."):
    problems.extend(wrong)
    return None
  knobs = [row for row in all_rows(cls, flat).values() if row.record]
  return filled(cls, flat | words.keys(name, knobs))


def _split_list(flag: str, text: str) -> list[str]:
  """The words of a comma-separated flag; InputError where one is empty."""
  words = text.split(",") if text else []
  check(
    f"--{flag}: entry {number} of {text!r} is empty"
    for number, word in enumerate(words, start=1)
    if not word.strip()
  )
  return words


def _numbers(flag: str, text: str) -> list[float]:
  """Reads the words of _split_list as numbers."""
  found: list[float] = []
  problems: list[str] = []
  for word in _split_list(flag, text):
    try:
      found.append(float(word.replace("_", "?")))  # Python takes 1_0 for 10
    except ValueError:
      problems.append(f"--{flag}: {word!r} is not a number")
  check(problems)
  return found


def _number(flag: str, text: str) -> float:
  """Reads one number; InputError where it is none, or several."""
  found = _numbers(flag, text)
  if len(found) != 1:
    raise InputError(f"--{flag}: {text!r} is not a number")
  return found[0]


def text_problems(name: str, texts: Iterable[Any]) -> list[str]:
  """Lists texts that no file system takes, and addresses of no known store."""
  problems = []
  for text in (text for text in texts if isinstance(text, str)):
    if "\0" in text or re.search("[\ud800-\udfff]", text):
      problems.append(f"{name}: {text!r} is not UTF-8 without zero bytes")
    if name.endswith(".storage") and "://" in text:
      continue  # a study opens an address in ways of its own
    sizes = [len(part.encode(errors="replace")) for part in text.split("/")]
    if max(sizes) > _LONGEST_NAME or sum(sizes) + len(sizes) > _LONGEST_PATH:
      problems.append(
        f"{name}: {without_secrets(text)[:40]}... is too long for a path"
      )
    for scheme in re.findall(r"([A-Za-z][\w+.\-]*)://", text):
      if scheme not in _STORES:
        problems.append(
          f"{name}: {without_secrets(text)} is no place for files; a path, "
          "gs:// and s3:// are"
        )
        continue
      module, extra = _STORES[scheme]
      if importlib.util.find_spec(module) is None:
        problems.append(
          f"{name}: {scheme}:// needs the package {module} (jaxmerge's extra "
          f"{extra!r}): pip install {module}"
        )
  return problems


# Flags whose text is no plain one.
_READ: Mapping[str, Callable[[str, str], Any]] = {
  "inputs": _split_list,
  "weights": _numbers,
  "memory_budget_gb": _number,
}
