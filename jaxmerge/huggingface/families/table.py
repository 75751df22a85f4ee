"""Which family a model belongs to, and its tensors both ways."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxmerge.errors import InputError, check, grouped
from jaxmerge.formats.lazy_tensors import (
  LazyTensor,
  TensorSpec,
  num_rows,
)
from jaxmerge.huggingface.families.family import (
  FAMILIES,
  Family,
  Tensor,
  hf_shape,
  to_flax,
  to_hf,
)
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.shapes import param_shapes

DTYPES = ("float32", "bfloat16", "float16")


def ranked() -> list[Family]:
  """The families in the order in which they are tried."""
  return sorted(FAMILIES.values(), key=lambda family: family.rank)


def family_of_type(value: Any) -> Family:
  """The family that a config.json names.

  Raises:
    InputError: it is not JSON of a model that we know.
  """
  if not isinstance(value, dict):
    raise InputError("config.json is not a JSON object")
  name = value.get("model_type")
  for family in ranked():
    if family.name == name:
      return family
  known = ", ".join(family.name for family in ranked())
  raise InputError(
    f"config.json: model_type is {name!r}, only {known} are supported"
  )


def same_model(a: DecoderConfig, b: DecoderConfig) -> bool:
  """Says whether both compute the same, however they run and pad."""
  how = {key: getattr(a, key) for key in ("dtype", "vocab_multiple")}
  b = dataclasses.replace(b, **how, head_dim=b.head_size)
  return dataclasses.replace(a, head_dim=a.head_size) == b


def family_of_config(config: DecoderConfig) -> Family:
  """The family whose config.json can say all that a config says.

  Raises:
    InputError: there is none.
  """
  for family in ranked():
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
  leaves: Mapping[str, LazyTensor], config: DecoderConfig, family: Family
) -> Iterator[tuple[str, np.ndarray]]:
  """Their tensors from our parameters, one at a time; no rows of padding."""
  for tensor in family.table(leaves):
    flax = [leaves[name] for name in tensor.flax]
    for layer, name in enumerate(tensor.names(config)):
      parts = [
        leaf.rows(layer, layer + 1)[0] if tensor.stacked else np.asarray(leaf)
        for leaf in flax
      ]
      yield name, to_hf(tensor, parts, config)


def tensor_specs(
  leaves: Mapping[str, LazyTensor], config: DecoderConfig, family: Family
) -> dict[str, TensorSpec]:
  """Describes the tensors that to_tensors will give, by name."""
  shapes = {name: leaf.shape for name, leaf in leaves.items()}
  return {
    name: TensorSpec(
      hf_shape(tensor, shapes, config),
      np.result_type(*(leaves[flax].dtype for flax in tensor.flax)),
    )
    for tensor in family.table(leaves)
    for name in tensor.names(config)
  }


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _OurLeaf(LazyTensor):
  """A parameter of ours that lies in tensors of theirs; rows are layers."""

  stacked: bool
  layer: Callable[[int], np.ndarray]

  def rows(self, start: int, stop: int) -> np.ndarray:
    if not self.stacked:
      return self.layer(0)[start:stop]
    return np.stack([self.layer(layer) for layer in range(start, stop)])


def flax_leaves(
  tensors: Mapping[str, Any], config: DecoderConfig, family: Family
) -> dict[str, LazyTensor]:
  """Our parameters from their tensors, in their dtypes; the padding is zero.

  Args:
    tensors: arrays, or what `np.asarray` reads when it is needed.
    config: the model.
    family: whose names they have.

  Returns:
    By our names; rows are read when they are needed.

  Raises:
    InputError: says which tensors are missing, left over, or of a shape or
      dtype that does not fit, a line for each kind.
  """
  check_layers(config, tensors)
  shapes = param_shapes(config)
  known, problems = _flax_alone(tensors, config, family)
  table = family.table(shapes)
  used = {name for tensor in table for name in tensor.names(config)}
  kinds = [[f"tensor {n} is not used" for n in known if n not in used]]
  of_tensors = [_problems(tensor, known, shapes, config) for tensor in table]
  kinds += [sorted(itertools.chain(*lines)) for lines in zip(*of_tensors)]
  check(sorted(problems + [line for k in kinds for line in grouped(k)]))

  def read(tensor: Tensor, part: int, layer: int) -> np.ndarray:
    array = np.asarray(known[tensor.names(config)[layer]])
    return to_flax(tensor, array, shapes, config)[part]

  leaves = {
    name: _OurLeaf(
      shapes[name],
      np.dtype(known[tensor.names(config)[0]].dtype),
      1 if tensor.stacked else num_rows(shapes[name]),
      stacked=tensor.stacked,
      layer=functools.partial(read, tensor, i),
    )
    for tensor in table
    for i, name in enumerate(tensor.flax)
  }
  return {name: leaves[name] for name in shapes}


def _flax_alone(
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
  [embedding] = [t for t in family.tensors if t.flax == ("embed/embedding",)]
  [head] = [t for t in family.tensors if t.flax == ("head/kernel",)]
  if config.tie_word_embeddings and head.hf in kept:
    copy = np.asarray(kept.pop(head.hf))
    if not np.array_equal(copy, np.asarray(kept.get(embedding.hf, copy))):
      problems.append(
        f"the head is said to be tied, but {head.hf} is not {embedding.hf}"
      )
  return kept, problems


def check_layers(config: DecoderConfig, tensors: Mapping[str, Any]) -> None:
  """Refuses more layers than tensors, before they are counted one by one."""
  if config.num_hidden_layers > len(tensors):
    raise InputError(
      f"config.json says {config.num_hidden_layers} layers, of which "
      f"{len(tensors)} tensors cannot be"
    )


def _problems(
  tensor: Tensor,
  tensors: Mapping[str, Any],
  shapes: Mapping[str, tuple[int, ...]],
  config: DecoderConfig,
) -> tuple[list[str], ...]:
  """Problems of each kind: missing, shapes, dtypes, several dtypes."""
  names = tensor.names(config)
  expected = hf_shape(tensor, shapes, config)
  present = {name: tensors[name] for name in names if name in tensors}
  dtypes = sorted({str(array.dtype) for array in present.values()})
  return (
    [f"no tensor {name}" for name in names if name not in tensors],
    [
      f"tensor {name} has shape {list(array.shape)}, not {list(expected)}"
      for name, array in present.items()
      if array.shape != expected
    ],
    [
      f"tensor {name} is {array.dtype}, not one of {', '.join(DTYPES)}"
      for name, array in present.items()
      if str(array.dtype) not in DTYPES
    ],
    [
      f"tensors {tensor.hf.format('*')} are of several dtypes "
      f"({', '.join(dtypes)}); one stack holds one"
    ]
    * (len(dtypes) > 1),
  )
