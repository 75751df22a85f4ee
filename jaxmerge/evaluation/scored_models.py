"""The models that are scored together, and what they have in common."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxmerge.checkpoints.compatibility import is_one_model, is_one_tokenizer
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.merged import identity
from jaxmerge.errors import InputError
from jaxmerge.evaluation.config import EvaluateConfig
from jaxmerge.evaluation.evaluator import Setting
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.huggingface.carried import CONFIG
from jaxmerge.huggingface.shards import files_read
from jaxmerge.merging.resident import Placement, choose_placement


class Models(NamedTuple):
  """Checkpoints; those of one kind share a program and what it is given.

  They are equal models of one dtype, tokenizer and length of texts.

  Attributes:
    checkpoints: in the order of the inputs.
    kinds: for each, the number of the first checkpoint of its kind.
    settings: by kind, what its evaluators are opened in; the corpus is that of
      the first checkpoint.
    is_one_tokenizer: all have the same.
  """

  checkpoints: Sequence[Checkpoint]
  kinds: Sequence[int]
  settings: Mapping[int, Setting]
  is_one_tokenizer: bool

  @classmethod
  def of(
    cls, config: EvaluateConfig, checkpoints: Sequence[Checkpoint]
  ) -> "Models":
    first = checkpoints[0]
    is_one = all(is_one_tokenizer(first, c) for c in checkpoints)
    kinds = [_first_alike(checkpoints, c) for c in checkpoints]
    settings = {
      kind: _setting(config, first, checkpoints[kind], is_one) for kind in kinds
    }
    return cls(checkpoints, kinds, settings, is_one)

  def place(self, memory_budget_gb: float) -> Placement:
    """Finds room for one of them at a time, the largest that is needed.

    Raises:
      InputError: a model does not fit the devices.
    """
    found = [
      choose_placement(
        [self.checkpoints[kind]],
        setting.shardings,
        merged_trees=1,
        memory_budget_gb=memory_budget_gb,
      )
      for kind, setting in self.settings.items()
    ]
    return max(found, key=lambda placement: placement.needed)


def _first_alike(
  checkpoints: Sequence[Checkpoint], checkpoint: Checkpoint
) -> int:
  return next(
    number
    for number, other in enumerate(checkpoints)
    if is_one_tokenizer(other, checkpoint)
    and is_one_model(other, checkpoint)
    and _computed(other.metadata) == _computed(checkpoint.metadata)
  )


def _computed(metadata: Metadata) -> tuple[str, int]:
  """The dtype that a model is computed in, and the length of its texts."""
  return metadata.model["dtype"], _positions(metadata)


def _setting(
  config: EvaluateConfig, first: Checkpoint, other: Checkpoint, is_one: bool
) -> Setting:
  """The other model on the first one's corpus, checked for the first alone."""
  tokens = (first if is_one else other).metadata
  metadata = dataclasses.replace(
    first.metadata,
    model=other.metadata.model,
    leaves=other.metadata.leaves,
    tokenizer=tokens.tokenizer,
    files=tokens.files,
  )
  return config.setting(metadata, allow_unrelated=other is not first)


def content_of(checkpoint: Checkpoint) -> str:
  """A hash of a checkpoint's parameters, to find their scores again.

  That of a Hugging Face directory is of some rows of its tensors, and so of
  the sizes and times of its files too.
  """
  found = identity(checkpoint)
  if checkpoint.leaves is None:
    return found
  for name in sorted(files_read(checkpoint.path)):
    known = (checkpoint.path / name).stat()
    found += f" {name} {known.length} {known.mtime}"
  return found


def context_of(checkpoint: Checkpoint, seq_len: int) -> int:
  """Positions of a text that a model is given at most.

  Those that are asked for, that its config.json names or its training had.

  Raises:
    InputError: nothing says how many.
  """
  metadata = checkpoint.metadata
  context = seq_len or _positions(metadata)
  if not context:
    raise InputError(
      f"{checkpoint.name} says nothing of how long its texts may be; give "
      "config.seq_len"
    )
  return context


def _positions(metadata: Metadata) -> int:
  """Those of config.json, else of training; 0 where nothing says how many."""
  value = json.loads(metadata.files.get(CONFIG, "{}"))
  positions = value.get("max_position_embeddings", 0)
  stated = positions if type(positions) is int else 0
  return stated or int(metadata.data.get("seq_len", 0))
