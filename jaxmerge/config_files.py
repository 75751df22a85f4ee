"""Config files: found, run, and compared with a verb's schema."""

import importlib.util
import math
import pathlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import config_dict

import jaxmerge
from jaxmerge.errors import InputError, check
from jaxmerge.files import expanded

Schema = Mapping[str, Any]


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
  found = [place for place in places if _exists(place)]
  for place in found:
    if place.is_file():
      return f"{place}{colon}{argument}"
  raise InputError(
    f"config file {file} is not a file"
    if found
    else f"config file {file} does not exist"
  )


def _exists(path: pathlib.Path) -> bool:
  try:
    return path.exists()
  except OSError as error:
    reason = f"cannot be read: {error.strerror}"
    raise InputError(f"config file {path} {reason}") from error


def load_config(name: str) -> config_dict.ConfigDict:
  """Loads a config as `--config=name` does; for notebooks and tests.

  Raises:
    InputError: there is no such file, it does not run, or gives no ConfigDict.
  """
  file, _, argument = config_path(name).partition(":")
  spec = importlib.util.spec_from_file_location("jaxmerge_config", file)
  if spec is None or spec.loader is None:
    raise InputError(f"config file {file} is not a Python file")
  module = importlib.util.module_from_spec(spec)
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
  if not isinstance(config, config_dict.ConfigDict):
    raise InputError(
      f"get_config of config file {file} must return an ml_collections "
      f"ConfigDict, not {type(config).__name__}"
    )
  try:
    list(strings_of(config, ""))
  except config_dict.RequiredValueError as error:
    raise InputError(
      f"config file {file} leaves a required placeholder empty"
    ) from error
  return config


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
    else:
      problems += _value_problems(f"{prefix}{key}", config[key], kind)
  return problems


def _value_problems(name: str, value: Any, kind: Any) -> list[str]:
  of_tuple = typing.get_args(kind)  # (the elements' type, ...)
  if of_tuple:
    is_right = isinstance(value, tuple | list) and all(
      _is_a(element, of_tuple[0]) for element in value
    )
  else:
    is_right = _is_a(value, kind)
  if not is_right:
    return [f"{name} must be {_kind_name(kind)}, got {value!r}"]
  if isinstance(value, float) and not math.isfinite(value):
    return [f"{name} must be a finite number, got {value}"]
  return []


_EXAMPLES = {str: "('a', 'b') or ('a',)", int: "(1, 2) or (1,)"}


def _kind_name(kind: Any) -> str:
  of_tuple = typing.get_args(kind)
  if not of_tuple:
    return kind.__name__
  [element, _] = of_tuple
  return f"a tuple of {element.__name__}, as {_EXAMPLES[element]}"


def _is_a(value: Any, kind: type) -> bool:
  if isinstance(value, bool):
    return kind is bool
  if kind is float:
    return isinstance(value, int | float)
  return isinstance(value, kind)


def strings_of(
  config: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, str]]:
  """The strings of a config by name, those in tuples too."""
  for key, value in config.items():
    if isinstance(value, config_dict.ConfigDict):
      yield from strings_of(value, f"{prefix}.{key}")
    for part in value if isinstance(value, tuple | list) else [value]:
      if isinstance(part, str):
        yield f"{prefix}.{key}", part
