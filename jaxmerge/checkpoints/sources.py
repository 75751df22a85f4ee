"""Inputs as models: step directories and Hugging Face directories alike."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxmerge.checkpoints import trajectory
from jaxmerge.checkpoints.hugging_face import open_model
from jaxmerge.checkpoints.leaves import Leaf, whole
from jaxmerge.checkpoints.metadata import tree_of_leaves
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.checkpoints.trajectory import DECODER, TENSORS, Checkpoint
from jaxmerge.errors import Problems, check
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.rules import named_leaves

_NUMBER = re.compile(r"(\d+)B?$")


def open_models(inputs: Sequence[str]) -> list[Checkpoint]:
  """trajectory.open_inputs, with our names for all parameters.

  Raises:
    InputError: lists every input that is missing, damaged or of a model that
      is not supported.
  """
  problems = Problems()
  opened = [
    problems(functools.partial(as_model, checkpoint))
    for checkpoint in trajectory.open_inputs(inputs)
  ]
  problems.check()
  return [checkpoint for checkpoint in opened if checkpoint]


def as_model(checkpoint: Checkpoint) -> Checkpoint:
  """A checkpoint by our names for its parameters.

  Raises:
    InputError: its model is not supported, or another one than it says.
  """
  if checkpoint.layout != TENSORS:
    check_is_model(checkpoint)
    return checkpoint
  metadata, leaves = open_model(checkpoint.path)
  return dataclasses.replace(
    checkpoint, metadata=metadata, layout=DECODER, leaves=leaves
  )


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
    f"{name}: the parameter {leaf} is {given.get(leaf, 'missing')}, of its "
    f"model {wanted.get(leaf, 'unknown')}"
    for leaf in sorted(wanted.keys() | given.keys())
    if wanted.get(leaf) != given.get(leaf)
  )


def numbered(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
  """With steps for checkpoints of which none says its own.

  The numbers at the end of their names (step3000, train_02200B) if they
  differ, else 1, 2, ... as they were typed.
  """
  if any(c.metadata.step for c in checkpoints):
    return list(checkpoints)
  found = [_NUMBER.search(c.path.name) for c in checkpoints]
  steps = [int(match[1]) for match in found if match]
  if len(set(steps)) < len(checkpoints):
    steps = list(range(1, len(checkpoints) + 1))
  return [
    dataclasses.replace(c, metadata=dataclasses.replace(c.metadata, step=step))
    for c, step in zip(checkpoints, steps, strict=True)
  ]


def load_params(checkpoint: Checkpoint, shardings: Any) -> Any:
  """The parameters on the devices; those of a step directory are checked.

  Raises:
    InputError: the checkpoint is damaged.
  """
  if checkpoint.leaves is None:
    return restore_params(checkpoint.path, shardings)
  return place(checkpoint.leaves, shardings)


def place(leaves: Mapping[str, Leaf], shardings: Any) -> Any:
  """A tree on the devices, read one parameter after the other."""
  where = named_leaves(shardings)
  return tree_of_leaves(
    {
      name: jax.device_put(whole(leaf), where[name])
      for name, leaf in leaves.items()
    }
  )
