"""Hugging Face directories, both ways exact; names are those of `families`.

B batch, L positions.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers
from etils import epath
from flax import nnx

from jaxmerge.checkpoints.families import table
from jaxmerge.checkpoints.families.family import Family
from jaxmerge.checkpoints.leaves import Leaf
from jaxmerge.checkpoints.metadata import CARRIED_FILES, Metadata, versions
from jaxmerge.checkpoints.outputs import check_output
from jaxmerge.checkpoints.safetensors_file import read_json
from jaxmerge.checkpoints.shards import (
  MAX_SHARD_BYTES,
  open_tensors,
  write_tensors,
)
from jaxmerge.checkpoints.tensor_trees import (
  CONFIG,
  TOKENIZER,
  read_files,
  read_origin,
  without_digests,
  write_beside,
)
from jaxmerge.data.tokenizer import end_of_text_id
from jaxmerge.errors import InputError, check
from jaxmerge.files import replace_directory
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import Params, abstract_decoder

_CHECKED_SHAPE = (2, 8)


class Opened(NamedTuple):
  """A directory whose headers have been read and checked, but no tensor.

  Attributes:
    config: what config.json says.
    family: whose names the tensors have.
    tensors: by their names; `np.asarray` reads one.
    tokenizer: tokenizer.json, "" without.
    files: text of what else is carried along, by name.
  """

  config: DecoderConfig
  family: Family
  tensors: Mapping[str, Any]
  tokenizer: str
  files: Mapping[str, str]


def open_directory(path: epath.PathLike) -> Opened:
  """Reads everything but the tensors.

  Raises:
    InputError: lists what is missing, damaged or not supported.
  """
  path = epath.Path(path)
  problems: list[str] = []
  files: dict[str, str] = {}
  tensors: Mapping[str, Any] = {}
  try:
    files = read_files(path)
    value = read_json(files.get(CONFIG, ""))
    family = table.family_of_type(value)
    config = family.read_config(value)
  except InputError as error:
    problems += [f"{path}: {problem}" for problem in error.problems]
  except ValueError as error:
    problems.append(f"{path}: {CONFIG} is damaged: {error}")
  try:
    tensors = open_tensors(path)
  except InputError as error:
    problems += error.problems
  check(problems)
  tokenizer = files.pop(TOKENIZER, "")
  return Opened(config, family, tensors, tokenizer, files)


def load_directory(path: epath.PathLike) -> tuple[Params, Opened]:
  """The parameters of a directory, in the dtypes of its tensors.

  Raises:
    InputError: lists what is missing, damaged or not supported.
  """
  opened = open_directory(path)
  return _params(path, opened, opened.config), opened


def _params(
  path: epath.PathLike, opened: Opened, config: DecoderConfig
) -> Params:
  try:
    return table.from_tensors(opened.tensors, config, opened.family)
  except InputError as error:
    raise InputError([f"{path}: {p}" for p in error.problems]) from error
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error}") from error


def open_model(path: epath.PathLike) -> tuple[Metadata, Mapping[str, Leaf]]:
  """A directory as a step directory would be: our metadata, our parameters.

  Raises:
    InputError: lists what is missing, damaged or not supported.
  """
  path = epath.Path(path)
  opened = open_directory(path)
  try:
    leaves = table.our_leaves(opened.tensors, opened.config, opened.family)
  except InputError as error:
    raise InputError([f"{path}: {p}" for p in error.problems]) from error
  metadata = Metadata(
    kind="imported",
    step=0,
    tokens=0,
    run_id="",
    parent="",
    model=opened.config.to_dict(),
    data={},
    corpus="",
    tokenizer=opened.tokenizer,
    leaves={"params": without_digests(leaves)},
    iterator="",
    provenance={},
    versions=versions(),
    files=opened.files,
  )
  return read_origin(path, metadata), leaves


def save_directory(
  path: epath.PathLike,
  params: Params,
  config: DecoderConfig,
  *,
  tokenizer: str,
  files: Mapping[str, str],
  metadata: Metadata | None,
  max_shard_bytes: int = MAX_SHARD_BYTES,
  overwrite: bool = False,
) -> None:
  """Writes a directory, reads it again and compares tensors and logits.

  Args:
    path: the new directory.
    params: parameters; their dtypes are kept.
    config: their model.
    tokenizer: tokenizer.json, "" without.
    files: what was carried along, by name; a config.json that still describes
      the model is written as it was.
    metadata: of the checkpoint that is exported, for README.md and
      jaxmerge.json; None without one.
    max_shard_bytes: more than this is spread over several files.
    overwrite: replace an existing checkpoint.

  Raises:
    InputError: the model is of no family, `path` exists without `overwrite` or
      cannot be written, or what was written is not what was meant; then
      nothing is left behind.
  """
  check_output(path, overwrite=overwrite)
  family = table.family_of_config(config)
  with replace_directory(path) as temporary:
    temporary.mkdir()
    described = _still_true(files.get(CONFIG, ""), config, _dtype(params))
    if not described:
      ours = {**family.write_config(config), "torch_dtype": _dtype(params)}
      described = _json({**ours, **_token_ids(tokenizer)})
    texts = {**_other_files(files), CONFIG: described}
    if tokenizer:
      texts[TOKENIZER] = tokenizer
    write_beside(temporary, texts, metadata)
    write_tensors(
      temporary,
      table.tensor_specs(params, config, family),
      (array for _, array in table.to_tensors(params, config, family)),
      max_shard_bytes,
    )
    _check_written(temporary, params, config)


def _other_files(files: Mapping[str, str]) -> dict[str, str]:
  """Without config.json; InputError for a name that is none of a file here."""
  check(
    f"a file named {name!r} cannot be written beside a model"
    for name in files
    if name not in CARRIED_FILES and (not name.endswith(".py") or "/" in name)
  )
  return {name: text for name, text in files.items() if name != CONFIG}


def _dtype(params: Params) -> str | None:
  """The dtype of all parameters, None where there are several."""
  dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
  return dtypes.pop() if len(dtypes) == 1 else None


def _json(value: Any) -> str:
  return json.dumps(value, indent=2) + "\n"


def _still_true(carried: str, config: DecoderConfig, dtype: str | None) -> str:
  """The carried config.json if it describes the model, else ""."""
  if not carried or not _describes(carried, config):
    return ""
  value = json.loads(carried)
  for key in ("dtype", "torch_dtype"):
    if dtype and value.get(key, dtype) not in (None, dtype):
      value[key] = dtype
      carried = _json(value)
  return carried


def _token_ids(tokenizer: str) -> dict[str, int | None]:
  """Of the token before every document; else theirs would be those of Llama."""
  number = None
  if tokenizer:
    # tokenizers raises Exception itself
    with contextlib.suppress(Exception):
      number = end_of_text_id(tokenizers.Tokenizer.from_str(tokenizer))
  return {"bos_token_id": number, "eos_token_id": number}


def _describes(text: str, config: DecoderConfig) -> bool:
  try:
    value = read_json(text)
    said = table.family_of_type(value).read_config(value)
  except ValueError:  # an InputError is one
    return False
  return table.same_model(said, config)


def _check_written(
  path: epath.Path, params: Params, config: DecoderConfig
) -> None:
  """Reads a directory again; InputError where it is another model."""
  opened = open_directory(path)
  if not table.same_model(opened.config, config):
    raise InputError(
      f"the export says of itself {opened.config.to_dict()}, but the model is "
      f"{config.to_dict()}"
    )
  # The same program must run over both, so what a directory cannot say (how
  # the vocabulary is padded) is taken from the source.
  config = dataclasses.replace(config, dtype="float32", remat=False)
  again = _params(path, opened, config)
  check(_differences(again, params, config, opened.family))
  again = jax.tree.map(_placed_like, again, params)
  graph, _ = abstract_decoder(config)
  tokens_BxL = np.arange(math.prod(_CHECKED_SHAPE)).reshape(_CHECKED_SHAPE)
  tokens_BxL = (tokens_BxL * 7919 % config.vocab_size).astype(np.int32)

  @jax.jit
  def logits(params: Any) -> jax.Array:
    return nnx.merge(graph, params)(tokens_BxL)

  first, second = (np.asarray(logits(tree)) for tree in (params, again))
  if first.tobytes() != second.tobytes():
    difference = np.nanmax(np.abs(first - second))
    raise InputError(
      f"the export computes other logits than the model (by {difference:.3g})"
    )


def _differences(
  again: Params, params: Params, config: DecoderConfig, family: Family
) -> list[str]:
  written, meant = (
    table.to_tensors(tree, config, family) for tree in (again, params)
  )
  return [
    f"tensor {name} of the export is not what was to be written"
    for (name, a), (_, b) in zip(written, meant)
    if a.dtype != b.dtype or a.tobytes() != b.tobytes()
  ]


def _placed_like(new: np.ndarray, old: Any) -> Any:
  return jax.device_put(new, old.sharding) if hasattr(old, "sharding") else new
