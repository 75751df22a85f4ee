"""The tensors of a Hugging Face directory, in one file or in many."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from jaxmerge.errors import InputError, check, grouped
from jaxmerge.files import write_json
from jaxmerge.formats.lazy_tensors import LazyTensor, TensorSpec
from jaxmerge.formats.safetensors import (
  check_dtypes,
  open_file,
  read_metadata,
  write_file,
)
from jaxmerge.huggingface.carried import check_no_pointer
from jaxmerge.huggingface.found import found_instead
from jaxmerge.huggingface.torch_bin import open_torch_file
from jaxmerge.reading import read_file, read_json

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
_STEM, _DIFFUSERS = "model", "diffusion_pytorch_model"
# Names that libraries give to the tensors, a variant's (fp16) among them.
_CHOICE = re.compile(
  r"((diffusion_)?pytorch_model|model)(\.(?P<variant>\w+))?"
  r"\.(?P<ending>safetensors|bin)(\.index(\.(?P<of_index>\w+))?\.json)?"
)
# A plain name: an index must not lead out of its directory.
_FILE_NAME = re.compile(r"[^/\\]+\.(safetensors|bin)")


def write_tensors(
  directory: epath.PathLike,
  specs: Mapping[str, TensorSpec],
  portions: Iterable[np.ndarray],
  max_shard_bytes: int = MAX_SHARD_BYTES,
  *,
  stem: str = _STEM,
  metadata: Mapping[str, str] = {},
) -> None:
  """Writes model.safetensors, or shards and their index if it is too large.

  A tensor that is larger than a shard gets one of its own.

  Args:
    directory: exists.
    specs: what the tensors are, by name.
    portions: their contents one after the other, whole or in parts.
    max_shard_bytes: more than this is spread over several files.
    stem: instead of `model`.
    metadata: texts for the header of each file.

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
    write_file(directory / f"{stem}.safetensors", specs, contents, metadata)
    return
  places: dict[str, str] = {}
  for i, names in enumerate(shards):
    file = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    of_shard = {n: specs[n] for n in names}
    write_file(directory / file, of_shard, contents, metadata)
    places |= dict.fromkeys(names, file)
  total = sum(spec.nbytes for spec in specs.values())
  write_json(
    directory / f"{stem}.safetensors.index.json",
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

  safetensors are preferred where there are .bin files as well, and files
  without the name of a variant.

  Raises:
    InputError: a file is missing or damaged, or the index and the shards
      differ; lists all problems.
  """
  directory = epath.Path(directory)
  name = _chosen(directory)
  if name.endswith(".json"):
    return _open_shards(directory, _weight_map(directory / name))
  return _open(directory / name)


def _chosen(directory: epath.Path) -> str:
  """The name of the file of the tensors, or of the index of their shards."""
  found: dict[tuple[bool, bool], list[str]] = {}
  for file in directory.iterdir():
    match = _CHOICE.fullmatch(file.name)
    if match and (file.exists() or file.name in (ONE_FILE, INDEX)):
      is_variant = bool(match["variant"] or match["of_index"])
      rank = is_variant, match["ending"] == "bin"
      found.setdefault(rank, []).append(file.name)
  if not found:
    raise InputError(
      f"{directory} has no {ONE_FILE} and no {INDEX}{found_instead(directory)}"
    )
  name, *more = sorted(found[min(found)])
  if more:
    raise InputError(
      f"{directory} has both {name} and {more[0]}: which of them holds the "
      "model?"
    )
  return name


def files_read(directory: epath.PathLike) -> set[str]:
  """Names of the files that open_tensors reads."""
  directory = epath.Path(directory)
  name = _chosen(directory)
  if name.endswith(".json"):
    return {name, *_weight_map(directory / name).values()}
  return {name}


def file_metadata(directory: epath.PathLike) -> dict[str, str]:
  """The texts in the headers of a directory's safetensors files."""
  found: dict[str, str] = {}
  for name in sorted(files_read(directory)):
    if name.endswith(".safetensors"):
      found |= read_metadata(epath.Path(directory) / name)
  return found


def stem_of(directory: epath.PathLike) -> str:
  """The beginning of the name that a library looks for: that of the input."""
  name = _chosen(epath.Path(directory))
  return _DIFFUSERS if name.startswith(_DIFFUSERS) else _STEM


def _open(path: epath.Path) -> Mapping[str, LazyTensor]:
  check_no_pointer(path)
  return open_file(path) if path.suffix != ".bin" else open_torch_file(path)


def _weight_map(index: epath.Path) -> dict[str, str]:
  check_no_pointer(index)
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
  files = sorted(set(places.values()))
  if len(files) > 1 and not any((directory / f).exists() for f in files):
    raise InputError(
      f"{directory} has an index, but none of its {len(files)} shards "
      f"({files[0]} ...){found_instead(directory)}"
    )
  for file in files:
    try:
      if not (directory / file).exists():
        raise InputError(f"{directory} has no shard {file}")
      shards[file] = _open(directory / file)
    except InputError as error:
      problems += error.problems
  problems += grouped(
    f"{directory}: tensor {name} is not in {file}, where the index has it"
    for name, file in places.items()
    if file in shards and name not in shards[file]
  )
  problems += grouped(
    f"{directory}: tensor {name} of {file} is not in the index"
    for file, shard in shards.items()
    for name in shard
    if places.get(name) != file
  )
  check(problems)
  return {name: shards[file][name] for name, file in places.items()}
