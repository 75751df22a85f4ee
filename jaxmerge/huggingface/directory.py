"""Hugging Face directories, both ways exact; names are those of `families`.

B batch, L positions.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import psutil
from etils import epath
from flax import nnx

from jaxmerge.errors import InputError, check
from jaxmerge.formats.lazy_tensors import LazyTensor, place_leaves
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.huggingface.carried import CONFIG, why_left
from jaxmerge.huggingface.families import table
from jaxmerge.huggingface.families.family import Family
from jaxmerge.huggingface.prefixes import plain_names
from jaxmerge.huggingface.shards import MAX_SHARD_BYTES, write_tensors
from jaxmerge.huggingface.tensor_kinds import is_derived
from jaxmerge.huggingface.tensors import (
  described,
  read_headers,
  with_dtype,
  write_beside,
)
from jaxmerge.huggingface.transformers_files import made_files
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.reading import read_json

_CHECKED_SHAPE = (2, 8)
# Sizes of a model that comparing logits may take: one, and its float32 copies.
_MODELS_IN_MEMORY = 4


def open_model(
  path: epath.PathLike,
) -> tuple[Metadata, Mapping[str, LazyTensor]]:
  """A directory as a step directory would be: our metadata, our parameters.

  Raises:
    InputError: lists what is missing, damaged or not supported.
  """
  path = epath.Path(path)
  files, (family, config), tensors = read_headers(path, _known)
  leaves = _flax_leaves(path, tensors, config, family)
  return described(path, config.to_dict(), files, leaves), leaves


def _known(value: Any) -> tuple[Family, DecoderConfig]:
  family = table.family_of_type(value)
  return family, family.read_config(value)


def _flax_leaves(
  path: epath.Path,
  tensors: Mapping[str, Any],
  config: DecoderConfig,
  family: Family,
) -> Mapping[str, LazyTensor]:
  weights = {n: t for n, t in tensors.items() if not is_derived(n, t.shape)}
  try:
    weights = plain_names(weights, config, family)
    return table.flax_leaves(weights, config, family)
  except InputError as error:
    raise InputError([f"{path}: {p}" for p in error.problems]) from error
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error}") from error


def save_directory(
  place: contextlib.AbstractContextManager[epath.Path],
  leaves: Mapping[str, LazyTensor],
  config: DecoderConfig,
  *,
  tokenizer: str,
  files: Mapping[str, str],
  metadata: Metadata | None,
  check_read: Callable[[], object] = lambda: None,
  max_shard_bytes: int = MAX_SHARD_BYTES,
  header: Mapping[str, str] = {},
) -> bool:
  """Writes a directory, reads it again and compares tensors and logits.

  One tensor after the other, so that the model may be larger than memory; then
  its logits are not compared.

  Args:
    place: gives the path of the new directory, which it does not make.
    leaves: parameters by name; their dtypes are kept.
    config: their model.
    tokenizer: tokenizer.json, "" without.
    files: what was carried along, by name; a config.json that still describes
      the model is written as it was.
    metadata: of the checkpoint that is exported, for README.md and
      jaxmerge.json; None without one.
    check_read: called when all leaves have been read.
    max_shard_bytes: more than this is spread over several files.
    header: texts for the header of each file of tensors.

  Returns:
    Whether logits were compared.

  Raises:
    InputError: the model is of no family, or what was written is not what was
      meant.
  """
  length = metadata.data.get("seq_len") if metadata else None
  family, files = _texts(leaves, config, tokenizer, files, length)
  with place as path:
    check(
      f"a file named {name!r} cannot be written beside a model"
      for name in files
      if why_left(name)
    )
    path.mkdir()
    write_beside(path, files, tokenizer, metadata, is_known=True)
    write_tensors(
      path,
      table.tensor_specs(leaves, config, family),
      (array for _, array in table.to_tensors(leaves, config, family)),
      max_shard_bytes,
      metadata=header,
    )
    check_read()
    return _check_written(path, leaves, config)


def _texts(
  leaves: Mapping[str, LazyTensor],
  config: DecoderConfig,
  tokenizer: str,
  files: Mapping[str, str],
  length: int | None,
) -> tuple[Family, Mapping[str, str]]:
  """The family, and what lies beside: carried where it fits, else made."""
  carried = files.get(CONFIG, "")
  if family := _described_by(carried, config):
    return family, {**files, CONFIG: with_dtype(carried, leaves.values())}
  family = table.family_of_config(config)
  dtypes = {str(leaf.dtype) for leaf in leaves.values()}
  dtype = dtypes.pop() if len(dtypes) == 1 else None
  model = {**family.write_config(config), "torch_dtype": dtype}
  made = made_files(model, tokenizer, files, length)
  return family, {**made, **files, CONFIG: made[CONFIG]}


def _described_by(carried: str, config: DecoderConfig) -> Family | None:
  """The family of a config.json that describes the model; None: it does not."""
  try:
    family, said = _known(read_json(carried))
  except ValueError:  # an InputError is one
    return None
  return family if table.same_model(said, config) else None


def _check_written(
  path: epath.Path, leaves: Mapping[str, LazyTensor], config: DecoderConfig
) -> bool:
  """Reads a directory again; InputError where it is another model.

  Returns:
    Whether logits were compared, for which a model must fit in memory.
  """
  _, (family, said), tensors = read_headers(path, _known)
  if not table.same_model(said, config):
    raise InputError(
      f"the export says of itself {said.to_dict()}, but the model is "
      f"{config.to_dict()}"
    )
  # The same program must run over both, so what a directory cannot say (how
  # the vocabulary is padded) is taken from the source.
  config = dataclasses.replace(config, dtype="float32")
  again = _flax_leaves(path, tensors, config, family)
  check(_differences(again, leaves, config, family))
  size = sum(leaf.nbytes for leaf in leaves.values())
  if _MODELS_IN_MEMORY * size > _free_memory():
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


def _logits(
  leaves: Mapping[str, LazyTensor], config: DecoderConfig
) -> np.ndarray:
  """Logits of a small batch, in float32, on the default device."""
  graph, _ = abstract_decoder(config)
  params = place_leaves(leaves)
  tokens_BxL = np.arange(math.prod(_CHECKED_SHAPE)).reshape(_CHECKED_SHAPE)
  tokens_BxL = (tokens_BxL * 7919 % config.vocab_size).astype(np.int32)
  logits = jax.jit(lambda params: nnx.merge(graph, params)(tokens_BxL))
  return np.asarray(logits(params))


def _differences(
  again: Mapping[str, LazyTensor],
  leaves: Mapping[str, LazyTensor],
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
