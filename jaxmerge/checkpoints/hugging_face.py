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
import psutil
from etils import epath
from flax import nnx

from jaxmerge.checkpoints.families import table
from jaxmerge.checkpoints.families.family import Family
from jaxmerge.checkpoints.leaves import Leaf, total_bytes, whole
from jaxmerge.checkpoints.merged import Readings
from jaxmerge.checkpoints.metadata import (
  CARRIED_FILES,
  Metadata,
  imported,
  kept_tokenizers,
  tree_of_leaves,
)
from jaxmerge.checkpoints.outputs import output_directory
from jaxmerge.checkpoints.shards import (
  MAX_SHARD_BYTES,
  write_tensors,
)
from jaxmerge.checkpoints.tensor_trees import (
  CONFIG,
  read_headers,
  read_origin,
  without_digests,
  write_beside,
)
from jaxmerge.data.tokenizers.hugging_face import TOKENIZER_JSON
from jaxmerge.errors import InputError, check
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.reading import read_json

_CHECKED_SHAPE = (2, 8)
# Sizes of a model that comparing logits may take: one, and its float32 copies.
_MODELS_IN_MEMORY = 4


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
  files, (family, config), tensors = read_headers(epath.Path(path), _known)
  tokenizer = files.pop(TOKENIZER_JSON, "")
  return Opened(config, family, tensors, tokenizer, files)


def _known(value: Any) -> tuple[Family, DecoderConfig]:
  family = table.family_of_type(value)
  return family, family.read_config(value)


def _our_leaves(
  path: epath.PathLike, opened: Opened, config: DecoderConfig
) -> Mapping[str, Leaf]:
  try:
    return table.our_leaves(opened.tensors, config, opened.family)
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
  leaves = _our_leaves(path, opened, opened.config)
  metadata = imported(
    opened.config.to_dict(),
    opened.tokenizer,
    without_digests(leaves),
    opened.files,
  )
  return read_origin(path, metadata), leaves


def save_directory(
  path: epath.PathLike,
  leaves: Mapping[str, Leaf],
  config: DecoderConfig,
  *,
  tokenizer: str,
  files: Mapping[str, str],
  metadata: Metadata | None,
  readings: Readings | None = None,
  max_shard_bytes: int = MAX_SHARD_BYTES,
  overwrite: bool = False,
) -> bool:
  """Writes a directory, reads it again and compares tensors and logits.

  One tensor after the other, so that the model may be larger than memory; then
  its logits are not compared.

  Args:
    path: the new directory.
    leaves: parameters by name; their dtypes are kept.
    config: their model.
    tokenizer: tokenizer.json, "" without.
    files: what was carried along, by name; a config.json that still describes
      the model is written as it was.
    metadata: of the checkpoint that is exported, for README.md and
      jaxmerge.json; None without one.
    readings: what the leaves are read from; its digests are checked.
    max_shard_bytes: more than this is spread over several files.
    overwrite: replace an existing checkpoint.

  Returns:
    Whether logits were compared.

  Raises:
    InputError: the model is of no family, `path` exists without `overwrite` or
      cannot be written, or what was written is not what was meant; then
      nothing is left behind.
  """
  family = table.family_of_config(config)
  with output_directory(path, overwrite=overwrite) as temporary:
    temporary.mkdir()
    dtype = _dtype(leaves)
    described = _still_true(files.get(CONFIG, ""), config, dtype)
    if not described:
      ours = {**family.write_config(config), "torch_dtype": dtype}
      described = _json({**ours, **_token_ids(tokenizer, files)})
    texts = {**_other_files(files), CONFIG: described}
    if tokenizer:
      texts[TOKENIZER_JSON] = tokenizer
    write_beside(temporary, texts, metadata, is_known=True)
    write_tensors(
      temporary,
      table.tensor_specs(leaves, config, family),
      (array for _, array in table.to_tensors(leaves, config, family)),
      max_shard_bytes,
    )
    if readings is not None:
      readings.hashes()
    return _check_written(temporary, leaves, config)


def _other_files(files: Mapping[str, str]) -> dict[str, str]:
  """Without config.json; InputError for a name that is none of a file here."""
  check(
    f"a file named {name!r} cannot be written beside a model"
    for name in files
    if name not in CARRIED_FILES and (not name.endswith(".py") or "/" in name)
  )
  return {name: text for name, text in files.items() if name != CONFIG}


def _dtype(leaves: Mapping[str, Leaf]) -> str | None:
  """The dtype of all parameters, None where there are several."""
  dtypes = {str(leaf.dtype) for leaf in leaves.values()}
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


def _token_ids(
  tokenizer: str, files: Mapping[str, str]
) -> dict[str, int | None]:
  """Of the token before every document; else theirs would be those of Llama."""
  number = None
  with contextlib.suppress(InputError):
    for kept in kept_tokenizers(tokenizer, files):
      number = kept.end_of_text
      break
  return {"bos_token_id": number, "eos_token_id": number}


def _describes(text: str, config: DecoderConfig) -> bool:
  try:
    value = read_json(text)
    said = table.family_of_type(value).read_config(value)
  except ValueError:  # an InputError is one
    return False
  return table.same_model(said, config)


def _check_written(
  path: epath.Path, leaves: Mapping[str, Leaf], config: DecoderConfig
) -> bool:
  """Reads a directory again; InputError where it is another model.

  Returns:
    Whether logits were compared, for which a model must fit in memory.
  """
  opened = open_directory(path)
  if not table.same_model(opened.config, config):
    raise InputError(
      f"the export says of itself {opened.config.to_dict()}, but the model is "
      f"{config.to_dict()}"
    )
  # The same program must run over both, so what a directory cannot say (how
  # the vocabulary is padded) is taken from the source.
  config = dataclasses.replace(config, dtype="float32", remat=False)
  again = _our_leaves(path, opened, config)
  check(_differences(again, leaves, config, opened.family))
  if _MODELS_IN_MEMORY * total_bytes(leaves) > _free_memory():
    return False
  first, second = (_logits(tree, config) for tree in (leaves, again))
  if first.tobytes() != second.tobytes():
    difference = np.nanmax(np.abs(first - second))
    raise InputError(
      f"the export computes other logits than the model (by {difference:.3g})"
    )
  return True


def _free_memory() -> int:
  return psutil.virtual_memory().available


def _logits(leaves: Mapping[str, Leaf], config: DecoderConfig) -> np.ndarray:
  """Of a small batch, in float32, on the default device."""
  graph, _ = abstract_decoder(config)
  params = tree_of_leaves(
    {name: jax.device_put(whole(leaf)) for name, leaf in leaves.items()}
  )
  tokens_BxL = np.arange(math.prod(_CHECKED_SHAPE)).reshape(_CHECKED_SHAPE)
  tokens_BxL = (tokens_BxL * 7919 % config.vocab_size).astype(np.int32)
  logits = jax.jit(lambda params: nnx.merge(graph, params)(tokens_BxL))
  return np.asarray(logits(params))


def _differences(
  again: Mapping[str, Leaf],
  leaves: Mapping[str, Leaf],
  config: DecoderConfig,
  family: Family,
) -> list[str]:
  written, meant = (
    table.to_tensors(tree, config, family) for tree in (again, leaves)
  )
  return [
    f"tensor {name} of the export is not what was to be written"
    for (name, a), (_, b) in zip(written, meant)
    if a.dtype != b.dtype or a.tobytes() != b.tobytes()
  ]
