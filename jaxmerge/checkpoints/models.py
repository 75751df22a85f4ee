"""Whole models in and out: `jaxmerge.load_model` and `jaxmerge.save_model`."""

import dataclasses

import jax
from etils import epath
from flax import nnx

from jaxmerge.checkpoints import hugging_face
from jaxmerge.checkpoints.metadata import (
  Metadata,
  describe_leaves,
  read_metadata,
  versions,
)
from jaxmerge.checkpoints.store import restore_params, save_params
from jaxmerge.errors import InputError
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import Decoder, Params, abstract_decoder

FORMATS = ("hf", "orbax")


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """Parameters with what is needed to run them, from either format.

  `metadata` is None for a Hugging Face directory.
  """

  params: Params
  config: DecoderConfig
  tokenizer: str
  metadata: Metadata | None


def load(path: epath.PathLike) -> SavedModel:
  """Reads a step directory or a Hugging Face directory.

  Raises:
    InputError: it is neither, or it is damaged.
  """
  path = epath.Path(path)
  if not path.exists():
    raise InputError(f"{path} does not exist")
  if hugging_face.is_hugging_face(path):
    params, config, tokenizer = hugging_face.load_directory(path)
    return SavedModel(jax.device_put(params), config, tokenizer, None)
  metadata = read_metadata(path)
  config = DecoderConfig.from_dict(metadata.model)
  return SavedModel(restore_params(path), config, metadata.tokenizer, metadata)


def save(
  saved: SavedModel, path: epath.PathLike, format: str, *, overwrite: bool
) -> None:
  """Writes a step directory ("orbax") or a Hugging Face directory ("hf").

  Raises:
    InputError: the format is unknown, `path` exists, or it cannot be written.
  """
  if format not in FORMATS:
    raise InputError(f"format must be one of {FORMATS}, got {format!r}")
  if format == "hf":
    hugging_face.save_directory(
      path, saved.params, saved.config, saved.tokenizer, overwrite=overwrite
    )
    return
  metadata = saved.metadata or _imported(saved)
  if metadata.kind == "trained":  # no optimiser state: nothing to resume from
    metadata = dataclasses.replace(
      metadata,
      kind="converted",
      leaves={"params": metadata.leaves["params"]},
      iterator="",
    )
  save_params(path, saved.params, metadata, overwrite=overwrite)


def _imported(saved: SavedModel) -> Metadata:
  return Metadata(
    kind="imported",
    step=0,
    tokens=0,
    run_id="",
    parent="",
    model=dataclasses.asdict(saved.config),
    data={},
    corpus="",
    tokenizer=saved.tokenizer,
    leaves={"params": describe_leaves(saved.params)},
    iterator="",
    provenance={},
    versions=versions(),
  )


def load_model(path: epath.PathLike) -> Decoder:
  """Loads a model to call: `load_model(path)(tokens) -> logits`.

  Args:
    path: an Orbax step directory or a Hugging Face directory (Llama).

  Returns:
    A Decoder; it maps int32[B, L] to float32[B, L, V].

  Raises:
    InputError: there is no such directory, or it is damaged.
  """
  saved = load(path)
  graph, _ = abstract_decoder(saved.config)
  return nnx.merge(graph, saved.params)


def save_model(
  model: Decoder, path: epath.PathLike, format: str = "orbax"
) -> None:
  """Saves a model as an Orbax step directory or a Hugging Face directory.

  Args:
    model: its parameters and config are saved; it carries no tokenizer.
    path: a directory that does not exist yet.
    format: "orbax" or "hf".

  Raises:
    InputError: the format is unknown, `path` exists, or it cannot be written.
  """
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  saved = SavedModel(params, model.config, "", None)
  save(saved, path, format, overwrite=False)
