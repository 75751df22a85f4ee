"""Whole models in and out: `jaxmerge.load_model` and `jaxmerge.save_model`."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import jax
from etils import epath
from flax import nnx

from jaxmerge.checkpoints import hugging_face
from jaxmerge.checkpoints.leaves import (
  Chunk,
  Leaf,
  LeafSpec,
  leaves_of,
  num_rows,
  whole,
)
from jaxmerge.checkpoints.merged import Readings
from jaxmerge.checkpoints.metadata import (
  Metadata,
  describe_leaves,
  imported,
  read_metadata,
  tree_of_leaves,
)
from jaxmerge.checkpoints.shards import MAX_SHARD_BYTES
from jaxmerge.checkpoints.store import (
  PART_BYTES,
  restore_params,
  save_params,
  save_rows,
)
from jaxmerge.checkpoints.tallies import LeafTally, watched
from jaxmerge.checkpoints.tensor_trees import (
  ORIGIN,
  is_hugging_face,
)
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.errors import InputError
from jaxmerge.files import user_path
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import Decoder, Params, abstract_decoder
from jaxmerge.parallel.rules import is_stacked

FORMATS = ("hf", "orbax")


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """Parameters with what is needed to run them, from either format.

  `metadata` is None for a Hugging Face directory that says nothing of its
  origin. `files` is what else lay in one, by name, to go back with it: the
  config.json as it was, what the tokenizer needs beside tokenizer.json.
  """

  params: Params
  config: DecoderConfig
  tokenizer: str
  metadata: Metadata | None
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def check_format(format: str) -> None:
  """Refuses what is no format: "orbax" and "hf" are."""
  if format not in FORMATS:
    raise InputError(f"format must be one of {FORMATS}, got {format!r}")


def load(path: epath.PathLike) -> SavedModel:
  """Reads a step directory or a Hugging Face directory.

  Raises:
    InputError: it is neither, or it is damaged.
  """
  path = user_path(path)
  if not path.exists():
    raise InputError(f"{path} does not exist")
  if is_hugging_face(path):
    metadata, leaves = hugging_face.open_model(path)
    params = tree_of_leaves(
      {name: jax.device_put(whole(leaf)) for name, leaf in leaves.items()}
    )
    known = None
    if _has_origin(path):
      described = {"params": describe_leaves(params)}
      known = dataclasses.replace(metadata, leaves=described)
    config = DecoderConfig.from_dict(metadata.model)
    return SavedModel(params, config, metadata.tokenizer, known, metadata.files)
  metadata = read_metadata(path)
  config = DecoderConfig.from_dict(metadata.model)
  return SavedModel(
    restore_params(path), config, metadata.tokenizer, metadata, metadata.files
  )


def save(
  saved: SavedModel,
  path: epath.PathLike,
  format: str,
  *,
  overwrite: bool,
  max_shard_bytes: int | None = None,
) -> None:
  """Writes a step directory ("orbax") or a Hugging Face directory ("hf").

  Args:
    saved: the model.
    path: the new directory.
    format: "orbax" or "hf".
    overwrite: replace an existing checkpoint.
    max_shard_bytes: of "hf" only: the most that one safetensors file may hold;
      None is 5 GB.

  Raises:
    InputError: the format is unknown, `path` exists, it cannot be written, or
      no family of Hugging Face models can say what the model is.
  """
  check_format(format)
  if format == "hf":
    if max_shard_bytes is None:
      max_shard_bytes = MAX_SHARD_BYTES
    hugging_face.save_directory(
      path,
      leaves_of(saved.params),
      saved.config,
      tokenizer=saved.tokenizer,
      files=saved.files,
      metadata=saved.metadata,
      max_shard_bytes=max_shard_bytes,
      overwrite=overwrite,
    )
    return
  if max_shard_bytes is not None:
    raise InputError("max_shard_bytes is for format 'hf' only")
  metadata = saved.metadata or imported(
    saved.config.to_dict(),
    saved.tokenizer,
    describe_leaves(saved.params),
    saved.files,
  )
  if metadata.kind == "trained":  # no optimiser state: nothing to resume from
    metadata = dataclasses.replace(
      metadata,
      kind="converted",
      leaves={"params": metadata.leaves["params"]},
      iterator="",
      metrics="",
    )
  save_params(path, saved.params, metadata, overwrite=overwrite)


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
  [tally] = readings.tallies
  leaves = watched(source.open_leaves(), tally)
  if format == "hf":
    known = source.leaves is None or _has_origin(source.path)
    return hugging_face.save_directory(
      path,
      leaves,
      DecoderConfig.from_dict(source.metadata.model),
      tokenizer=source.metadata.tokenizer,
      files=source.metadata.files,
      metadata=source.metadata if known else None,
      readings=readings,
    )
  specs = {name: _in_parts(name, leaf) for name, leaf in leaves.items()}
  written = LeafTally()

  def metadata() -> Metadata:
    readings.hashes()
    kept = source.metadata
    kind = "converted" if kept.kind == "trained" else kept.kind
    described = {"params": written.leaves(specs)}
    return dataclasses.replace(
      kept, kind=kind, leaves=described, iterator="", metrics=""
    )

  save_rows(path, specs, _rows(leaves, specs, written), metadata)
  return True


def _in_parts(name: str, leaf: Leaf) -> LeafSpec:
  """How a parameter is stored: each layer of a stack, else some rows."""
  row = leaf.dtype.itemsize * math.prod(leaf.shape[1:])
  together = 1 if is_stacked(name) else max(PART_BYTES // max(row, 1), 1)
  if leaf.rows_together < num_rows(leaf.shape):  # it is read in such parts
    together = leaf.rows_together
  return LeafSpec(leaf.shape, leaf.dtype, together)


def _rows(
  leaves: Mapping[str, Leaf], specs: Mapping[str, LeafSpec], tally: LeafTally
) -> Iterator[Chunk]:
  """All rows as they are to be stored; the tally sees each."""
  for name, leaf in leaves.items():
    count, read, kept = (
      num_rows(leaf.shape),
      leaf.rows_together,
      specs[name].rows_together,
    )
    for start in range(0, count, read):
      array = leaf.rows(start, min(start + read, count))
      for i in range(0, len(array), kept):
        part = array[i : i + kept]
        first = start + i
        chunk = Chunk(name, first, first + len(part), part)
        tally.add(chunk)
        yield chunk


def _has_origin(path: epath.Path) -> bool:
  """Whether a Hugging Face directory says where it comes from."""
  return (path / ORIGIN).exists()


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
    InputError: the format is unknown, `path` exists, or it cannot be written.
  """
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  saved = SavedModel(params, model.config, "", None)
  save(saved, path, format, overwrite=False, max_shard_bytes=max_shard_bytes)
