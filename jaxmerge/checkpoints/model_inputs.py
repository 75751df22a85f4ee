"""Inputs as models: step directories and Hugging Face directories alike."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jaxmerge.checkpoints.input_order import find_order
from jaxmerge.checkpoints.inputs import (
  TENSORS,
  Checkpoint,
  open_checkpoint,
  open_inputs,
)
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.errors import check, grouped
from jaxmerge.formats.lazy_tensors import place_leaves
from jaxmerge.huggingface.directory import open_model
from jaxmerge.huggingface.places import names_by_parameter
from jaxmerge.huggingface.tensors import is_hugging_face, open_tree
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.rules import named_leaves


def open_models(inputs: Sequence[str]) -> list[Checkpoint]:
  """inputs.open_inputs, with our names for all parameters.

  Raises:
    InputError: lists every input that is missing, damaged or of a model that
      is not supported.
  """
  return open_inputs(inputs, _opened)


def _opened(path: epath.Path, name: str) -> Checkpoint:
  if is_hugging_face(path):
    metadata, leaves = open_model(path)
    return Checkpoint(path, name, metadata, leaves=leaves)
  return as_model(open_checkpoint(path, name))


def as_model(checkpoint: Checkpoint) -> Checkpoint:
  """A checkpoint by our names for its parameters.

  Raises:
    InputError: its model is not supported, or another one than it says.
  """
  if checkpoint.layout == TENSORS:
    return _opened(checkpoint.path, checkpoint.name)
  check_is_model(checkpoint)
  return checkpoint


def check_is_model(checkpoint: Checkpoint) -> None:
  """Refuses a step directory whose parameters are not those of its model.

  Raises:
    InputError: lists what is missing, not known or of another shape.
  """
  name, metadata = checkpoint.name, checkpoint.metadata
  _, params = abstract_decoder(DecoderConfig.from_dict(metadata.model))
  wanted = {n: list(leaf.shape) for n, leaf in named_leaves(params).items()}
  given = {n: leaf["shape"] for n, leaf in metadata.leaves["params"].items()}
  check(
    grouped(
      f"{name}: the parameter {leaf} is {given.get(leaf, 'missing')}, of its "
      f"model {wanted.get(leaf, 'unknown')}"
      for leaf in sorted(wanted.keys() | given.keys())
      if wanted.get(leaf) != given.get(leaf)
    )
  )


def own_names(
  checkpoints: Sequence[Checkpoint],
) -> Mapping[str, Sequence[str]] | None:
  """The names of parameters in the last of some Hugging Face directories.

  Returns:
    By our name, of a stack one a layer; None where some are none.
  """
  if not all(is_hugging_face(c.path) for c in checkpoints):
    return None
  metadata, leaves = open_tree(checkpoints[-1].path)
  return names_by_parameter(leaves, metadata.model)


def numbered(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
  """With steps for checkpoints of which none says its own.

  Those that input_order finds, else 1, 2, ... as they were typed.
  """
  if any(c.metadata.step for c in checkpoints):
    return list(checkpoints)
  steps = find_order(checkpoints).steps_K or range(1, len(checkpoints) + 1)
  return [
    dataclasses.replace(c, metadata=dataclasses.replace(c.metadata, step=step))
    for c, step in zip(checkpoints, steps, strict=True)
  ]


def load_params(checkpoint: Checkpoint, shardings: Any = None) -> Any:
  """The parameters on the devices; those of a step directory are checked.

  Raises:
    InputError: the checkpoint is damaged.
  """
  if checkpoint.leaves is None:
    return restore_params(checkpoint.path, shardings, checkpoint.item)
  return place_leaves(checkpoint.leaves, shardings)
