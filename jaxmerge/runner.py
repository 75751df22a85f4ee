"""The shared runner of all verbs: flags, config files, errors, progress.

Flags are defined when a verb runs, never at import, in a FlagValues of its
own. Bad flags, bad configs and bad input end in one message and exit code 2.
"""

import contextlib
import errno
import importlib.util
import io
import math
import os
import pathlib
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import tqdm
from absl import flags
from etils import epath
from ml_collections import config_dict, config_flags

import jaxmerge
from jaxmerge.errors import (
  Diverged,
  InputError,
  Problems,
  check,
  describe_interrupt,
)
from jaxmerge.files import cache_root, expanded
from jaxmerge.parallel import distributed
from jaxmerge.shown import printable, without_secrets

Schema = Mapping[str, Any]
# Flags that name one path; --inputs names several.
_PATHS = ("workdir", "output", "input", "init_from")
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def config_path(name: str) -> str:
  """Finds a config file: as typed, or among those that jaxmerge carries.

  `configs/pretrain/quickstart.py` names the same file in a checkout and in an
  installed wheel. A `:argument` behind the file name is kept.

  Raises:
    InputError: there is no such file.
  """
  file, colon, argument = expanded(name).partition(":")
  package = pathlib.Path(jaxmerge.__file__).parent
  relative = pathlib.PurePath(file)
  places = [pathlib.Path(file)]
  if relative.parts[:1] == ("configs",):
    places += [package / relative, package.parent / relative]
  for place in places:
    if place.is_file():
      return f"{place}{colon}{argument}"
  raise InputError(f"config file {file} does not exist")


def load_config(name: str) -> config_dict.ConfigDict:
  """Loads a config as `--config=name` does; for notebooks and tests."""
  file, _, argument = config_path(name).partition(":")
  spec = importlib.util.spec_from_file_location("jaxmerge_config", file)
  if spec is None or spec.loader is None:
    raise InputError(f"config file {file} is not a Python file")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return module.get_config(*([argument] if argument else []))
  except Exception as error:  # noqa: BLE001  (the user's own code)
    what = f"{type(error).__name__}: {error}"
    raise InputError(f"config file {file} does not run: {what}") from error


def check_config(
  config: Mapping[str, Any], schema: Schema, prefix: str = "config."
) -> None:
  """Refuses a config that has not exactly the keys and types of the schema.

  Args:
    config: a ConfigDict.
    schema: for each key its type, or the schema of a section.

  Raises:
    InputError: lists every unknown and missing key and every wrong type.
  """
  check(_config_problems(config, schema, prefix))


def _config_problems(
  config: Mapping[str, Any], schema: Schema, prefix: str
) -> list[str]:
  problems = [
    f"unknown config key {prefix}{key}" for key in config if key not in schema
  ]
  for key, kind in schema.items():
    if key not in config:
      problems.append(f"missing config key {prefix}{key}")
    elif isinstance(kind, Mapping):
      if isinstance(config[key], Mapping | config_dict.ConfigDict):
        problems += _config_problems(config[key], kind, f"{prefix}{key}.")
      else:
        problems.append(f"{prefix}{key} must be a section of keys")
    elif not _is_a(config[key], kind):
      problems.append(
        f"{prefix}{key} must be {kind.__name__}, got {config[key]!r}"
      )
  return problems


def _is_a(value: Any, kind: type) -> bool:
  if isinstance(value, bool):
    return kind is bool
  if kind is float:
    return isinstance(value, int | float)
  if kind is tuple:
    return isinstance(value, tuple | list)
  return isinstance(value, kind)


def parse(
  argv: Sequence[str],
  *,
  doc: str,
  configs: Mapping[str, str | None],
  strings: Mapping[str, tuple[str | None, str]],
  booleans: Mapping[str, str],
) -> types.SimpleNamespace:
  """Parses a verb's command line.

  Args:
    argv: the words after the command.
    doc: printed by --help.
    configs: config flags with their default file; None: required.
    strings: string flags with default and help; default None: required.
    booleans: boolean flags, all false by default, with help.

  Returns:
    One attribute per flag; a config flag's is its ConfigDict.

  Raises:
    InputError: lists every unknown flag, unknown config key and missing flag.
    SystemExit: --help was asked for.
  """
  if {"--help", "-h", "--helpfull"} & set(argv):
    print(_help(doc, configs, strings, booleans))
    raise SystemExit(0)
  typed, wrong = _at_home(_joined(argv, [*configs, *strings]))
  argv, problems = _resolve(typed, configs)
  problems += wrong
  values = flags.FlagValues()
  for name, (default, help_text) in strings.items():
    flags.DEFINE_string(name, default, help_text, flag_values=values)
  for name, help_text in booleans.items():
    flags.DEFINE_bool(name, False, help_text, flag_values=values)
  words = ["jaxmerge", *argv]
  for name in configs:
    config_flags.DEFINE_config_file(name, flag_values=values, sys_argv=words)
  for word in argv:  # one by one: absl stops at the first that it refuses
    try:
      rest = values(["jaxmerge", word], known_only=True)[1:]
    except (flags.Error, OSError, ValueError, TypeError, LookupError) as error:
      problems.append(str(error).strip())
    else:
      kind = "flag" if word.startswith("-") else "argument"
      problems += [f"unknown {kind} {unknown}" for unknown in rest]
  required = [name for name, (default, _) in strings.items() if default is None]
  required += [name for name, default in configs.items() if default is None]
  problems += [
    f"flag --{name} is required"
    for name in required
    if not any(_words(typed, name)[-1:])
  ]
  check(problems)
  names = [*strings, *booleans, *configs]
  return types.SimpleNamespace(**{name: values[name].value for name in names})


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
  argv: Sequence[str], configs: Mapping[str, str | None]
) -> tuple[list[str], list[str]]:
  """Finds the config files and drops overrides of keys they do not have."""
  resolved: list[str] = []
  problems: list[str] = []
  loaded: dict[str, config_dict.ConfigDict] = {}
  named = {name for name in configs if _words(argv, name)}
  for name in configs:
    path = [configs[name], *_words(argv, name)][-1]
    if path is None:
      continue
    try:
      loaded[name] = load_config(path)
      resolved.append(f"--{name}={config_path(path)}")
    except InputError as error:
      problems += error.problems
  for word in argv:
    flag, _, _ = word.lstrip("-").partition("=")
    name, dot, key = flag.partition(".")
    if flag in named and word.startswith("-"):
      continue
    if name in configs and dot and word.startswith("-"):
      if "=" not in word:
        problems.append(f"write {word}=VALUE")
      elif name in loaded and not _has_key(loaded[name], key):
        problems.append(f"unknown config key {flag}")
      elif name in loaded:
        resolved.append(word)
      continue
    resolved.append(word)
  return resolved, problems


def _words(argv: Sequence[str], name: str) -> list[str]:
  prefix = f"--{name}="
  return [word.removeprefix(prefix) for word in argv if word.startswith(prefix)]


def _has_key(config: Any, key: str) -> bool:
  for part in key.split("."):
    if not isinstance(config, config_dict.ConfigDict) or part not in config:
      return False
    config = config[part]
  return True


def _help(
  doc: str,
  configs: Mapping[str, str | None],
  strings: Mapping[str, tuple[str | None, str]],
  booleans: Mapping[str, str],
) -> str:
  lines = [doc.strip(), "", "Flags:"]
  for name, default in configs.items():
    needed = "required" if default is None else f"default {default}"
    lines.append(f"  --{name}=FILE  a config file ({needed});")
    lines.append(f"      --{name}.key=value overrides one of its keys")
  for name, (value, text) in strings.items():
    needed = " (required)" if value is None else ""
    lines.append(f"  --{name}=VALUE  {text}{needed}")
  lines += [f"  --{name}  {text}" for name, text in booleans.items()]
  return "\n".join(lines)


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


def split_list(text: str) -> list[str]:
  """The words of a comma-separated flag."""
  return [word for word in text.split(",") if word]


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
    return _fail(verb, [str(error)], Diverged.exit_code)
  except OSError as error:
    if error.errno not in _CANNOT_WRITE:
      raise
    where = f" {error.filename}" if error.filename else ""
    return _fail(verb, [f"cannot write{where}: {error.strerror}"])
  except KeyboardInterrupt as error:
    text, exit_code = describe_interrupt(error)
    print(f"jaxmerge.{verb}: {text}", file=sys.stderr)
    return exit_code
  return 0


def _fail(verb: str, problems: Sequence[str], exit_code: int = 2) -> int:
  lines = "".join(f"\n  {shown(problem)}" for problem in problems)
  print(f"jaxmerge.{verb}: error:{lines}", file=sys.stderr)
  return exit_code


def shown(text: str) -> str:
  """The text as it may go to a terminal."""
  return printable(without_secrets(text))


def set_up_jax() -> None:
  """Joins a multi-process job and keeps compiled programs between runs."""
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(cache_root() / "jax"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  distributed.start()


class TerminalProgress:
  """A progress bar per stage; where there is no terminal, a line now and then.

  Called with a stage, steps done, steps in all and a note; a call whose total
  is 0 prints its note as a line. Only the first process of a job prints. From
  the second call of a stage on it says when the stage may end, by the mean
  time of the steps that this process has seen done.

  Args:
    clock: seconds from any moment on.
  """

  _SECONDS_BETWEEN_LINES = 10.0
  # tqdm's own guess weighs the latest steps most, and jumps.
  _FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"

  def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
    self._clock = clock
    self._stage = ""
    self._bar: tqdm.tqdm | None = None
    self._first = (0, 0.0)  # steps done and time at the stage's first call
    self._printed = -math.inf

  def __call__(self, stage: str, done: int, total: int, note: str) -> None:
    if not distributed.is_first_process():
      return
    if total == 0:
      self._close()
      print(f"{stage}: {shown(note)}", flush=True)
      return
    if self._bar is None or stage != self._stage:
      self._close()
      self._stage = stage
      self._first = (done, self._clock())
      self._bar = tqdm.tqdm(
        total=total,
        desc=stage,
        initial=done,
        file=sys.stdout if sys.stdout.isatty() else io.StringIO(),
        dynamic_ncols=True,
        bar_format=self._FORMAT,
      )
    words = [self._eta(done, total), shown(note)]
    # The note comes last: a narrow terminal cuts the line there.
    self._bar.set_postfix_str(", ".join(filter(None, words)), refresh=False)
    self._bar.update(done - self._bar.n)
    if not sys.stdout.isatty():
      self._print_line(final=done == total)
    if done == total:
      self._close()

  def _eta(self, done: int, total: int) -> str:
    """For example "ETA 2:05"; nothing before a step is timed, or at the end."""
    done_before, start = self._first
    if not done_before < done < total:
      return ""
    seconds_a_step = (self._clock() - start) / (done - done_before)
    minutes, seconds = divmod(round(seconds_a_step * (total - done)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
      return f"ETA {hours}:{minutes:02}:{seconds:02}"
    return f"ETA {minutes}:{seconds:02}"

  def _print_line(self, *, final: bool) -> None:
    assert self._bar is not None
    if final or self._clock() > self._printed + self._SECONDS_BETWEEN_LINES:
      self._printed = self._clock()
      numbers = {**self._bar.format_dict, "ncols": None, "ascii": True}
      print(tqdm.tqdm.format_meter(**numbers), flush=True)

  def _close(self) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None
