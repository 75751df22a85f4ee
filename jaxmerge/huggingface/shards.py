"""The tensors of a Hugging Face directory, in one file or in many."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from jaxmerge.errors import InputError, check
from jaxmerge.files import write_json
from jaxmerge.formats.lazy_tensors import LazyTensor, TensorSpec
from jaxmerge.formats.safetensors import (
  check_dtypes,
  open_file,
  write_file,
)
from jaxmerge.huggingface.torch_bin import open_torch_file
from jaxmerge.reading import read_file, read_json

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
# What is read where there are no safetensors: the files of older directories.
_OLDER_FILE = "pytorch_model.bin"
_OLDER_INDEX = "pytorch_model.bin.index.json"
# A plain name: an index must not lead out of its directory.
_FILE_NAME = re.compile(r"[^/\\]+\.(safetensors|bin)")


def write_tensors(
  directory: epath.PathLike,
  specs: Mapping[str, TensorSpec],
  portions: Iterable[np.ndarray],
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes model.safetensors, or shards and their index if it is too large.

  A tensor that is larger than a shard gets one of its own.

  Args:
    directory: exists.
    specs: what the tensors are, by name.
    portions: their contents one after the other, whole or in parts.
    max_shard_bytes: more than this is spread over several files.

  Raises:
    InputError: the size is not positive, or a dtype cannot be written.
  """
  if max_shard_bytes < 1:
    raise InputError(f"max_shard_bytes must be positive, got {max_shard_bytes}")
  directory = epath.Path(directory)
  check_dtypes(specs)
  shards = _divided(specs, max_shard_bytes)
  contents = iter(portions)
  if len(shards) == 1:
    write_file(directory / ONE_FILE, specs, contents)
    return
  places: dict[str, str] = {}
  for i, names in enumerate(shards):
    file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    write_file(directory / file, {n: specs[n] for n in names}, contents)
    places |= dict.fromkeys(names, file)
  total = sum(spec.nbytes for spec in specs.values())
  write_json(
    directory / INDEX,
    {"metadata": {"total_size": total}, "weight_map": places},
  )


def _divided(
  specs: Mapping[str, TensorSpec], max_shard_bytes: int
) -> list[list[str]]:
  """Names of the tensors of each shard."""
  shards: list[list[str]] = [[]]
  size = 0
  for name, spec in specs.items():
    if shards[-1] and size + spec.nbytes > max_shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += spec.nbytes
  return shards


def open_tensors(directory: epath.PathLike) -> Mapping[str, LazyTensor]:
  """The tensors of a directory by name; their contents are not read yet.

  safetensors are preferred where there are .bin files as well.

  Raises:
    InputError: a file is missing or damaged, or the index and the shards
      differ; lists all problems.
  """
  directory = epath.Path(directory)
  both = ((ONE_FILE, INDEX), (_OLDER_FILE, _OLDER_INDEX))
  for one, index in both:
    if (directory / one).exists() and (directory / index).exists():
      raise InputError(
        f"{directory} has both {one} and {index}: which of them holds the "
        "model?"
      )
    if (directory / index).exists():
      return _open_shards(directory, _weight_map(directory / index))
    if (directory / one).exists():
      return _open(directory / one)
  raise InputError(f"{directory} has no {ONE_FILE} and no {INDEX}")


def _open(path: epath.Path) -> Mapping[str, LazyTensor]:
  return open_file(path) if path.suffix != ".bin" else open_torch_file(path)


def _weight_map(index: epath.Path) -> dict[str, str]:
  try:
    value: Any = read_json(read_file(index))
  except (OSError, ValueError) as error:
    raise InputError(f"{index} cannot be read: {error}") from error
  places = value.get("weight_map") if isinstance(value, dict) else None
  if not isinstance(places, dict) or not places:
    raise InputError(f"{index} has no weight_map")
  check(
    f"{index}: tensor {name!r} is said to lie in {file!r}, which is not the "
    "name of a file of tensors"
    for name, file in places.items()
    if not isinstance(file, str) or not _FILE_NAME.fullmatch(file)
  )
  return places


def _open_shards(
  directory: epath.Path, places: Mapping[str, str]
) -> dict[str, LazyTensor]:
  problems: list[str] = []
  shards: dict[str, Mapping[str, LazyTensor]] = {}
  for file in sorted(set(places.values())):
    try:
      if not (directory / file).exists():
        raise InputError(f"{directory} has no shard {file}")
      shards[file] = _open(directory / file)
    except InputError as error:
      problems += error.problems
  problems += [
    f"{directory}: tensor {name} is not in {file}, where the index has it"
    for name, file in places.items()
    if file in shards and name not in shards[file]
  ]
  problems += [
    f"{directory}: tensor {name} of {file} is not in the index"
    for file, shard in shards.items()
    for name in shard
    if places.get(name) != file
  ]
  check(problems)
  return {name: shards[file][name] for name, file in places.items()}
