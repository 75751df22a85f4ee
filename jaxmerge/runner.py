"""The shared runner of all verbs: flags, config files, errors, progress.

Flags are defined when a verb runs, never at import, in a FlagValues of its
own. Bad flags, bad configs and bad input end in one message and exit code 2.
"""

import contextlib
import errno
import functools
import os
import re
import shlex
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import config_dict, config_flags

from jaxmerge.config_fields import Row, flatten, rows
from jaxmerge.config_files import (
  config_class,
  config_path,
  filled,
  run_config_file,
  strings_of,
)
from jaxmerge.config_files import load_config as load_config
from jaxmerge.config_reading import structure_problems, unknown_key
from jaxmerge.errors import (
  Diverged,
  InputError,
  Problems,
  describe_interrupt,
)
from jaxmerge.files import cache_root, expanded
from jaxmerge.flag_values import text_problems
from jaxmerge.parallel import distributed
from jaxmerge.progress import TerminalProgress as TerminalProgress
from jaxmerge.shown import presentable

# A config flag: the verb whose config it is, and its default file.
Config = tuple[str, str | None]
# Flags that absl takes for its own, and reads files for.
_OF_ABSL = re.compile("--(flagfile|undefok)(=|$)")
# Flags that name one path; --inputs names several.
_PATHS = ("workdir", "output", "input", "init_from")
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def parse(
  argv: Sequence[str],
  *,
  doc: str,
  configs: Mapping[str, Config],
  strings: Mapping[str, tuple[str | None, str]],
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
    print(_help(doc, configs, strings, booleans))
    raise SystemExit(0)
  typed, wrong = _at_home(_joined(argv, [*configs, *strings]))
  found, argv, problems = _resolve(typed, configs)
  of_absl = [word for word in argv if _OF_ABSL.match(word)]
  problems += [f"unknown flag {word}" for word in of_absl]
  argv = [word for word in argv if word not in of_absl]
  problems += wrong
  values = flags.FlagValues()
  for name, (default, help_text) in strings.items():
    flags.DEFINE_string(name, default, help_text, flag_values=values)
  for name, help_text in booleans.items():
    flags.DEFINE_bool(name, False, help_text, flag_values=values)
  words = ["jaxmerge", *argv]
  for name, full in found.items():
    config_flags.DEFINE_config_dict(
      name, full, flag_values=values, sys_argv=words
    )
  for word in argv:  # one by one: absl stops at the first that it refuses
    try:
      rest = values(["jaxmerge", word], known_only=True)[1:]
    except (flags.Error, OSError, ValueError, TypeError, LookupError) as error:
      problems.append(str(error).strip())
    else:
      kind = "flag" if word.startswith("-") else "argument"
      problems += [f"unknown {kind} {unknown}" for unknown in rest]
  required = [name for name, (default, _) in strings.items() if default is None]
  required += [name for name, (_, file) in configs.items() if file is None]
  problems += [
    f"flag --{name} is required"
    for name in required
    if not "".join(_words(typed, name)[-1:]).strip()
  ]
  problems += [
    f"flag --{name} is empty; its default is {default}"
    for name, (default, _) in strings.items()
    if default and name not in read and "" in _words(typed, name)[-1:]
  ]
  for name in found:
    problems += text_problems(strings_of(values[name].value or {}, name))
  problems += text_problems(
    (f"--{name}", part)
    for name in strings
    for word in _words(typed, name)
    for part in word.split(",")
  )
  told = Problems(problems)
  names = [*strings, *booleans, *found]
  given = {name: values[name].value for name in names}
  for name, reader in read.items():
    text = given[name] or ""
    given[name] = told(functools.partial(reader, name, text))
  told.check()
  return types.SimpleNamespace(**given)


def _joined(argv: Sequence[str], names: Sequence[str]) -> list[str]:
  """Writes `--flag value` as `--flag=value`."""
  words: list[str] = []
  for word in argv:
    previous = words[-1] if words else ""
    name = previous.lstrip("-").partition(".")[0]
    takes_value = previous.startswith("-") and "=" not in previous
    if takes_value and name in names and not word.startswith("--"):
      words[-1] = f"--{previous.lstrip('-')}={word}"
    elif word.startswith("-"):
      words.append(f"--{word.lstrip('-')}")
    else:
      words.append(word)
  return words


def _at_home(words: Sequence[str]) -> tuple[list[str], list[str]]:
  """With the home directory for the `~` of each path; what is wrong with one.

  The shell leaves it where it stands behind a "=".
  """
  problems = Problems()

  def path(word: str) -> str:
    return problems(lambda: expanded(word)) or word

  found = []
  for word in words:
    flag, equals, value = word.partition("=")
    if flag.removeprefix("--") in _PATHS:
      value = path(value)
    elif flag == "--inputs":
      value = ",".join(map(path, value.split(",")))
    found.append(flag + equals + value)
  return found, problems.found


def _resolve(
  argv: Sequence[str], configs: Mapping[str, Config]
) -> tuple[dict[str, config_dict.ConfigDict], list[str], list[str]]:
  """Loads the config files, and takes from the words what is wrong with them.

  Returns:
    The config of each flag with every key, before what is typed; the words
    that are left, without the files' names; the problems.
  """
  problems: list[str] = []
  full: dict[str, config_dict.ConfigDict] = {}
  for name, (verb, default) in configs.items():
    path = [default, *_words(argv, name)][-1]
    if path is None:
      continue
    cls = config_class(verb)
    try:
      config = run_config_file(config_path(path), verb)
    except InputError as error:
      problems += error.problems
      continue
    # What there is besides depends on keys such as --config.optimizer.name.
    flat = flatten(config)
    for selector in {row.selector for row in rows(cls) if row.record}:
      for typed in _words(argv, f"{name}.{selector}"):
        flat[selector] = typed
    wrong = structure_problems(cls, flat, f"{name}.")
    if wrong:
      problems += wrong
    else:
      full[name] = filled(cls, flat)
  words: list[str] = []
  for word in argv:
    flag, equals, _ = word.lstrip("-").partition("=")
    name, dot, key = flag.partition(".")
    if name not in configs or not word.startswith("-"):
      words.append(word)
    elif dot and not equals:
      problems.append(f"write {word}=VALUE")
    elif dot and name in full:
      known = flatten(full[name])
      if key in known:
        words.append(word)
      else:
        problems.append(unknown_key(flag, known))
    elif not equals:
      words.append(word)
  return full, words, problems


def _words(argv: Sequence[str], name: str) -> list[str]:
  prefix = f"--{name}="
  return [word.removeprefix(prefix) for word in argv if word.startswith(prefix)]


def _help(
  doc: str,
  configs: Mapping[str, Config],
  strings: Mapping[str, tuple[str | None, str]],
  booleans: Mapping[str, str],
) -> str:
  lines = [doc.strip(), "", "Flags:"]
  for name, (_, default) in configs.items():
    needed = "required" if default is None else f"default {default}"
    lines.append(f"  --{name}=FILE  a config file ({needed});")
    lines.append(f"      --{name}.key=value overrides one of its keys")
  for name, (value, text) in strings.items():
    needed = " (required)" if value is None else ""
    lines.append(f"  --{name}=VALUE  {text}{needed}")
  lines += [f"  --{name}  {text}" for name, text in booleans.items()]
  for name, (verb, _) in configs.items():
    lines += ["", f"Keys of --{name}, with their defaults:"]
    lines += [_help_of_key(row) for row in rows(config_class(verb))]
  return "\n".join(lines)


def _help_of_key(row: Row) -> str:
  default = "required" if row.default is MISSING else repr(row.default)
  said = [part for part in (row.record, row.key.allowed) if part]
  told = f" [{'; '.join(said)}]" if said else ""
  return f"  {row.name} = {default}  {row.key.help}{told}"


@contextlib.contextmanager
def whole_output(path: epath.PathLike) -> Iterator[None]:
  """Notes on an interrupt what has become of an output written in one go."""
  try:
    yield
  except KeyboardInterrupt as error:
    if epath.Path(path).exists():
      error.add_note(f"{path} is whole, be it the earlier one or the new one")
    else:
      error.add_note("nothing was written")
    raise


def command(verb: str, argv: Sequence[str]) -> str:
  """The command line as a report may show it, without passwords."""
  words = [presentable(word) for word in argv]
  return shlex.join(["python", "-m", f"jaxmerge.{verb}", *words])


def run(verb: str, main: Callable[[], None]) -> int:
  """Runs a verb's main and returns its exit code.

  0; 2 for bad input; 3 for a run that has diverged; when interrupted 4 by
  SIGTERM, 130 by Ctrl-C. launch.run catches the signals themselves.
  """
  try:
    main()
  except InputError as error:
    return _fail(verb, error.problems)
  except Diverged as error:
    said = "; ".join([str(error), *getattr(error, "__notes__", ())])
    return _fail(verb, [said], Diverged.exit_code)
  except OSError as error:
    return _fail(verb, [_file_problem(error)])
  except MemoryError as error:
    return _fail(verb, [f"there is not enough memory: {error}"])
  except KeyboardInterrupt as error:
    text, exit_code = describe_interrupt(error)
    print(f"jaxmerge.{verb}: {text}", file=sys.stderr)
    return exit_code
  return 0


def _file_problem(error: OSError) -> str:
  name = f" {error.filename}" if error.filename else ""
  what = "cannot write" if error.errno in _CANNOT_WRITE else "cannot use"
  return f"{what}{name}: {error.strerror or error}"


def _fail(verb: str, problems: Sequence[str], exit_code: int = 2) -> int:
  lines = "".join(f"\n  {presentable(problem)}" for problem in problems)
  print(f"jaxmerge.{verb}: error:{lines}", file=sys.stderr)
  return exit_code


def set_up_jax() -> None:
  """Joins a multi-process job and keeps compiled programs between runs."""
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(cache_root() / "jax"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  distributed.start()
