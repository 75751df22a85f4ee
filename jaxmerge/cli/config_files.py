"""Config files: found, run, and filled with the defaults of a verb's keys."""

import contextvars
import dataclasses
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

import jaxmerge
from jaxmerge.config_fields import all_rows, as_kind, flatten, nested
from jaxmerge.config_reading import structure_problems
from jaxmerge.errors import InputError, check
from jaxmerge.files import expanded

# The config of each verb, imported when it is needed.
CONFIGS = {
  "pretrain": "jaxmerge.training.config:PretrainConfig",
  "merge": "jaxmerge.merging.config:MergeConfig",
  "search": "jaxmerge.evaluation.config:SearchConfig",
  "evaluate": "jaxmerge.evaluation.config:EvaluateConfig",
}
# The verb that a config file is being loaded for, for the files it loads.
_loading: contextvars.ContextVar[str] = contextvars.ContextVar(
  "loading", default=""
)


def config_class(verb: str) -> type:
  """The dataclass of a verb's config."""
  module, _, name = CONFIGS[verb].partition(":")
  return getattr(importlib.import_module(module), name)


def config_path(name: str) -> tuple[pathlib.Path, str]:
  """Finds a config file: as typed, or among those that jaxmerge carries.

  `configs/pretrain/quickstart.py` names the same file in a checkout and in an
  installed wheel. Returns it with the argument for get_config that follows it
  behind a ":"; InputError where there is no such file.
  """
  file, _, argument = expanded(name).partition(":")
  package = pathlib.Path(jaxmerge.__file__).parent
  places = [pathlib.Path(file)]
  if places[0].parts[:1] == ("configs",):
    places += [package / file, package.parent / file]
  try:
    found = [place for place in places if place.exists()]
  except OSError as error:
    reason = f"cannot be read: {error.strerror}"
    raise InputError(f"config file {file} {reason}") from error
  for place in found:
    if place.is_file():
      return place, argument
  reason = "is not a file" if found else "does not exist"
  raise InputError(f"config file {file} {reason}")


def load_config(name: str, verb: str = "") -> config_dict.ConfigDict:
  """Loads a config file as `--config=name` does, with its verb's defaults.

  Knobs of what a key such as `optimizer.name` chooses are left out where the
  file does not say them: their defaults depend on that key.

  For notebooks, tests, and config files that change a few keys of another.

  Args:
    name: of the file; `configs/...` are those that jaxmerge carries.
    verb: whose config it is. Without one the directory's name says it, as in
      `configs/search/`, or the verb that is loading the file.

  Raises:
    InputError: there is no such file, it does not run, gives no ConfigDict, or
      has keys that the verb has not.
  """
  folder = config_path(name)[0].parent.name
  verb = verb or (folder if folder in CONFIGS else _loading.get())
  if verb not in CONFIGS:
    raise InputError(
      f"config file {name}: give the verb that it is for, one of "
      f"{', '.join(CONFIGS)}, as in load_config({name!r}, verb='search')"
    )
  flat = run_config_file(name, verb)
  check(structure_problems(config_class(verb), flat))
  return filled(config_class(verb), flat, knobs=False)


def run_config_file(name: str, verb: str) -> dict[str, Any]:
  """Runs get_config of a file; returns the config, flat and not yet checked.

  The verb is for other files that it loads. InputError where there is no such
  file, it does not run or gives no ConfigDict.
  """
  file, argument = config_path(name)
  spec = importlib.util.spec_from_file_location("jaxmerge_config", file)
  if spec is None or spec.loader is None:
    raise InputError(f"config file {file} is not a Python file")
  module = importlib.util.module_from_spec(spec)
  folder = str(file.absolute().parent)
  if folder not in sys.path:  # as for a script: its neighbours can be imported
    sys.path.append(folder)
  token = _loading.set(verb)
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise InputError(f"config file {file} has no function get_config")
    config = module.get_config(*([argument] if argument else []))
  except InputError:
    raise
  # The user's own code, which may also exit.
  except BaseException as error:
    what = f"{type(error).__name__}: {error}"
    raise InputError(f"config file {file} does not run: {what}") from error
  finally:
    _loading.reset(token)
  if not isinstance(config, config_dict.ConfigDict):
    raise InputError(
      f"get_config of config file {file} must return an ml_collections "
      f"ConfigDict, not {type(config).__name__}"
    )
  try:
    return flatten(config)
  except config_dict.RequiredValueError as error:
    raise InputError(
      f"config file {file} leaves a required placeholder empty"
    ) from error


def filled(
  cls: type, config: Mapping[str, Any], *, knobs: bool = True
) -> config_dict.ConfigDict:
  """A flat config of right keys and types, with the defaults of the others.

  Args:
    cls: the verb's config.
    config: its values.
    knobs: with those of all records, or only those that `config` says.
  """
  full: dict[str, Any] = {}
  for name, row in all_rows(cls, config).items():
    if config.get(name) is not None:
      full[name] = as_kind(config[name], row.kind)
    elif row.record and not knobs:
      continue
    elif row.default is dataclasses.MISSING:
      full[name] = config_dict.placeholder(row.kind)
    else:
      full[name] = row.default
  return _Config.of(nested(full))


class _Config(config_dict.ConfigDict):
  """A ConfigDict in which a text set for a tuple is a tuple of that text."""

  @classmethod
  def of(cls, values: Mapping[str, Any]) -> "_Config":
    found = cls()
    for name, value in values.items():
      found[name] = cls.of(value) if isinstance(value, Mapping) else value
    return found

  def __setitem__(self, key: str, value: Any) -> None:
    is_tuple = isinstance(self.get(key), tuple)
    one = is_tuple and isinstance(value, str)
    try:
      super().__setitem__(key, (value,) if one else value)
    except TypeError as error:
      if isinstance(self.get(key), float) and isinstance(value, tuple | list):
        with self.ignore_type():  # a number for each input, or a mistake,
          super().__setitem__(key, value)  # which reading the config tells
        return
      if not is_tuple:
        raise
      raise TypeError(
        f"{key} must be a tuple, as ('a', 'b') or ('a',), got {value!r}"
      ) from error
