"""Which family a model belongs to, and its tensors both ways."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.checkpoints.families import (
  baichuan,
  gpt_neox,
  llama,
  olmo2,
  qwen,
)
from jaxmerge.checkpoints.families.family import (
  Family,
  Tensor,
  their_shape,
  to_ours,
  to_theirs,
)
from jaxmerge.checkpoints.leaves import Leaf, LeafSpec, num_rows, whole
from jaxmerge.errors import InputError, check
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.rules import named_leaves

FAMILIES = (
  llama.FAMILY,
  qwen.QWEN2,
  qwen.QWEN3,
  olmo2.FAMILY,
  gpt_neox.FAMILY,
  baichuan.FAMILY,
)
DTYPES = ("float32", "bfloat16", "float16")


def family_of_type(value: Any) -> Family:
  """The family that a config.json names.

  Raises:
    InputError: it is not JSON of a model that we know.
  """
  if not isinstance(value, dict):
    raise InputError("config.json is not a JSON object")
  name = value.get("model_type")
  for family in FAMILIES:
    if family.model_type == name:
      return family
  known = ", ".join(family.model_type for family in FAMILIES)
  raise InputError(
    f"config.json: model_type is {name!r}, only {known} are supported"
  )


def same_model(a: DecoderConfig, b: DecoderConfig) -> bool:
  """Whether both compute the same, however they run and pad."""
  return as_theirs(a) == as_theirs(b)


def as_theirs(config: DecoderConfig) -> DecoderConfig:
  """Without what a config.json cannot say."""
  return dataclasses.replace(
    config,
    dtype="float32",
    remat=False,
    vocab_multiple=128,
    head_dim=config.head_size,
  )


def family_of_config(config: DecoderConfig) -> Family:
  """The family whose config.json can say all that a config says.

  Raises:
    InputError: there is none.
  """
  for family in FAMILIES:
    try:
      said = family.read_config(family.write_config(config))
    except InputError:
      continue
    if same_model(said, config):
      return family
  raise InputError(
    "no model of transformers that jaxmerge knows has these options together: "
    f"{config.to_dict()}"
  )


def to_tensors(
  leaves: Mapping[str, Leaf], config: DecoderConfig, family: Family
) -> Iterator[tuple[str, np.ndarray]]:
  """Their tensors from our parameters, one at a time; no rows of padding."""
  for tensor in family.table(leaves):
    ours = [leaves[name] for name in tensor.ours]
    for layer, name in enumerate(tensor.names(config)):
      parts = [
        leaf.rows(layer, layer + 1)[0] if tensor.stacked else whole(leaf)
        for leaf in ours
      ]
      yield name, to_theirs(tensor, parts, config)


def tensor_specs(
  leaves: Mapping[str, Leaf], config: DecoderConfig, family: Family
) -> dict[str, LeafSpec]:
  """What to_tensors will give, by name."""
  shapes = {name: leaf.shape for name, leaf in leaves.items()}
  return {
    name: LeafSpec(
      their_shape(tensor, shapes, config),
      np.result_type(*(leaves[ours].dtype for ours in tensor.ours)),
    )
    for tensor in family.table(leaves)
    for name in tensor.names(config)
  }


class _OurLeaf(NamedTuple):
  """A parameter of ours that lies in tensors of theirs; rows are layers."""

  tensor: Tensor
  part: int
  tensors: Mapping[str, Any]
  shapes: Mapping[str, tuple[int, ...]]
  config: DecoderConfig

  @property
  def shape(self) -> tuple[int, ...]:
    return self.shapes[self.tensor.ours[self.part]]

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(self.tensors[self.tensor.names(self.config)[0]].dtype)

  @property
  def rows_together(self) -> int:
    return 1 if self.tensor.stacked else num_rows(self.shape)

  def rows(self, start: int, stop: int) -> np.ndarray:
    if not self.tensor.stacked:
      return self._layer(0)[start:stop]
    layers = [self._layer(layer) for layer in range(start, stop)]
    return np.stack(layers)

  def _layer(self, layer: int) -> np.ndarray:
    array = np.asarray(self.tensors[self.tensor.names(self.config)[layer]])
    return to_ours(self.tensor, array, self.shapes, self.config)[self.part]


def our_leaves(
  tensors: Mapping[str, Any], config: DecoderConfig, family: Family
) -> dict[str, Leaf]:
  """Our parameters from their tensors, in their dtypes; the padding is zero.

  Args:
    tensors: arrays, or what `np.asarray` reads when it is needed.
    config: the model.
    family: whose names they have.

  Returns:
    By our names; rows are read when they are needed.

  Raises:
    InputError: lists every tensor that is missing, left over, or of a shape or
      dtype that does not fit.
  """
  _, abstract = abstract_decoder(config)
  shapes = {n: leaf.shape for n, leaf in named_leaves(abstract).items()}
  tensors, problems = _ours_alone(tensors, config, family)
  table = family.table(shapes)
  used = {name for tensor in table for name in tensor.names(config)}
  problems += [f"tensor {n} is not used" for n in tensors if n not in used]
  for tensor in table:
    problems += _problems(tensor, tensors, shapes, config)
  check(sorted(problems))
  leaves = {
    name: _OurLeaf(tensor, i, tensors, shapes, config)
    for tensor in table
    for i, name in enumerate(tensor.ours)
  }
  return {name: leaves[name] for name in shapes}


def _ours_alone(
  tensors: Mapping[str, Any], config: DecoderConfig, family: Family
) -> tuple[dict[str, Any], list[str]]:
  """Under one name each, without derived ones and a tied head's second copy."""
  kept: dict[str, Any] = {}
  problems = []
  for name, array in tensors.items():
    known = family.other_names.get(name, name)
    if known in kept:
      problems.append(f"tensors {name} and {known} are the same parameter")
    if not family.derived.fullmatch(name):
      kept[known] = array
  [embedding] = [t for t in family.tensors if t.ours == ("embed/embedding",)]
  [head] = [t for t in family.tensors if t.ours == ("head/kernel",)]
  if config.tie_word_embeddings and head.theirs in kept:
    copy = np.asarray(kept.pop(head.theirs))
    if not np.array_equal(copy, np.asarray(kept.get(embedding.theirs, copy))):
      problems.append(
        f"the head is said to be tied, but {head.theirs} is not "
        f"{embedding.theirs}"
      )
  return kept, problems


def _problems(
  tensor: Tensor,
  tensors: Mapping[str, Any],
  shapes: Mapping[str, tuple[int, ...]],
  config: DecoderConfig,
) -> list[str]:
  names = tensor.names(config)
  expected = their_shape(tensor, shapes, config)
  problems = [f"no tensor {name}" for name in names if name not in tensors]
  present = {name: tensors[name] for name in names if name in tensors}
  for name, array in present.items():
    if array.shape != expected:
      problems.append(
        f"tensor {name} has shape {list(array.shape)}, not {list(expected)}"
      )
    if str(array.dtype) not in DTYPES:
      problems.append(
        f"tensor {name} is {array.dtype}, not one of {', '.join(DTYPES)}"
      )
  dtypes = {str(array.dtype) for array in present.values()}
  if len(dtypes) > 1:
    problems.append(
      f"tensors {tensor.theirs.format('*')} are of several dtypes "
      f"({', '.join(sorted(dtypes))}); one stack holds one"
    )
  return problems
