"""Whole models in and out: `jaxmerge.load_model` and `jaxmerge.save_model`."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from flax import nnx

from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.merged import Readings
from jaxmerge.checkpoints.model_inputs import load_params, open_models
from jaxmerge.checkpoints.outputs import output_directory
from jaxmerge.checkpoints.store import (
  PART_BYTES,
  save_params,
  save_rows,
)
from jaxmerge.errors import InputError
from jaxmerge.formats.integrity.checksums import LeafChecksum, watched
from jaxmerge.formats.lazy_tensors import (
  Chunk,
  LazyTensor,
  TensorSpec,
  leaves_of,
  num_rows,
)
from jaxmerge.formats.records.metadata import (
  Metadata,
  describe_leaves,
)
from jaxmerge.huggingface import directory
from jaxmerge.huggingface.carried import ORIGIN
from jaxmerge.huggingface.shards import MAX_SHARD_BYTES, file_metadata
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import Decoder, Params, abstract_decoder
from jaxmerge.parallel.distributed import on_first_process
from jaxmerge.parallel.rules import is_stacked

FORMATS = ("hf", "orbax")


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """Parameters with what is needed to run them, from either format.

  `metadata` is None for a Hugging Face directory that says nothing of its
  origin. `files` is what else lay in one, by name, to go back with it: the
  config.json as it was, what the tokenizer needs beside tokenizer.json.
  `header` is what its files of tensors say beside them.
  """

  params: Params
  config: DecoderConfig
  tokenizer: str
  metadata: Metadata | None
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  header: Mapping[str, str] = dataclasses.field(default_factory=dict)


def check_format(format: str) -> None:
  if format not in FORMATS:
    raise InputError(f"format must be one of {FORMATS}, got {format!r}")


def load(path: epath.PathLike) -> SavedModel:
  """Reads a step directory or a Hugging Face directory.

  Raises:
    InputError: it is neither, or it is damaged.
  """
  [source] = open_models([os.fspath(path)])
  return _described(source, load_params(source))


def _described(source: Checkpoint, params: Params) -> SavedModel:
  metadata = source.metadata
  is_known = source.leaves is None or (source.path / ORIGIN).exists()
  return SavedModel(
    params,
    DecoderConfig.from_dict(metadata.model),
    metadata.tokenizer,
    metadata if is_known else None,
    metadata.files,
    {} if source.leaves is None else file_metadata(source.path),
  )


def save(
  saved: SavedModel,
  path: epath.PathLike,
  format: str,
  *,
  overwrite: bool,
  max_shard_bytes: int | None = None,
) -> None:
  """As save_model; `overwrite` replaces an existing checkpoint.

  In a job of several processes all of them call it.
  """
  check_format(format)
  if format == "hf":
    place = output_directory(path, overwrite=overwrite)
    size = MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes
    leaves = leaves_of(saved.params)
    on_first_process(
      lambda: _export(saved, leaves, place, max_shard_bytes=size)
    )
    return
  if max_shard_bytes is not None:
    raise InputError("max_shard_bytes is for format 'hf' only")
  described = describe_leaves(saved.params)
  metadata = saved.metadata or Metadata(
    "imported",
    {},
    model=saved.config.to_dict(),
    tokenizer=saved.tokenizer,
    files=saved.files,
  )
  metadata = _converted(metadata, described)
  save_params(path, saved.params, metadata, overwrite=overwrite)


def _export(
  saved: SavedModel,
  leaves: Mapping[str, LazyTensor],
  place: contextlib.AbstractContextManager[epath.Path],
  **more: Any,
) -> bool:
  return directory.save_directory(
    place,
    leaves,
    saved.config,
    tokenizer=saved.tokenizer,
    files=saved.files,
    metadata=saved.metadata,
    header=saved.header,
    **more,
  )


def _converted(metadata: Metadata, leaves: Mapping[str, Any]) -> Metadata:
  """Marks a tree without an optimiser's state: no run goes on from it."""
  kind = "converted" if metadata.kind == "trained" else metadata.kind
  return dataclasses.replace(
    metadata, kind=kind, leaves={"params": leaves}, iterator="", metrics=""
  )


def convert(source: Checkpoint, path: epath.PathLike, format: str) -> bool:
  """Writes a checkpoint in a format, a parameter at a time.

  Args:
    source: a step directory, or a Hugging Face directory by our names.
    path: a directory that does not exist yet.
    format: "orbax" or "hf".

  Returns:
    False where a Hugging Face directory has been written whose model is too
    large for the memory to compare logits.

  Raises:
    InputError: as save, or the source is damaged.
  """
  check_format(format)
  readings = Readings.of([source])
  [checksum] = readings.checksums
  leaves = watched(source.open_leaves(), checksum)
  if format == "hf":
    place = output_directory(path, overwrite=False)
    saved = _described(source, {})
    return _export(saved, leaves, place, check_read=readings.hashes)
  specs = {name: _in_parts(name, leaf) for name, leaf in leaves.items()}
  written = LeafChecksum()

  def metadata() -> Metadata:
    readings.hashes()
    return _converted(source.metadata, written.leaves(specs))

  save_rows(path, specs, _rows(leaves, specs, written), metadata)
  return True


def _in_parts(name: str, leaf: LazyTensor) -> TensorSpec:
  """Yields a parameter as it is stored: layer by layer, else some rows."""
  row = leaf.dtype.itemsize * math.prod(leaf.shape[1:])
  together = 1 if is_stacked(name) else max(PART_BYTES // max(row, 1), 1)
  if leaf.rows_together < num_rows(leaf.shape):  # it is read in such parts
    together = leaf.rows_together
  return TensorSpec(leaf.shape, leaf.dtype, together)


def _rows(
  leaves: Mapping[str, LazyTensor],
  specs: Mapping[str, TensorSpec],
  checksum: LeafChecksum,
) -> Iterator[Chunk]:
  """All rows as they are to be stored; the checksum sees each."""
  for name, leaf in leaves.items():
    count, kept = num_rows(leaf.shape), specs[name].rows_together
    for start in range(0, count, leaf.rows_together):
      array = leaf.rows(start, min(start + leaf.rows_together, count))
      for i in range(0, len(array), kept):
        part = array[i : i + kept]
        chunk = Chunk(name, start + i, start + i + len(part), part)
        checksum.add(chunk)
        yield chunk


def load_model(path: epath.PathLike) -> Decoder:
  """Loads a model to call: `load_model(path)(tokens) -> logits`.

  Args:
    path: an Orbax step directory or a Hugging Face directory (docs/convert.md
      names the families).

  Returns:
    A Decoder; it maps int32[B, L] to float32[B, L, V].

  Raises:
    InputError: there is no such directory, or it is damaged.
  """
  saved = load(path)
  graph, _ = abstract_decoder(saved.config)
  return nnx.merge(graph, saved.params)


def save_model(
  model: Decoder,
  path: epath.PathLike,
  format: str = "orbax",
  max_shard_bytes: int | None = None,
) -> None:
  """Saves a model as an Orbax step directory or a Hugging Face directory.

  Args:
    model: its parameters and config are saved; it carries no tokenizer.
    path: a directory that does not exist yet.
    format: "orbax" or "hf".
    max_shard_bytes: of "hf" only: the most that one safetensors file may hold;
      None is 5 GB.

  Raises:
    InputError: the format is unknown, `path` exists, it cannot be written, or
      no family of Hugging Face models can say what the model is.
  """
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  saved = SavedModel(params, model.config, "", None)
  save(saved, path, format, overwrite=False, max_shard_bytes=max_shard_bytes)
