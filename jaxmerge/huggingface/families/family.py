"""A family of models: which of their tensors hold which of our parameters.

Theirs holds one tensor a layer, as (outputs, inputs); ours one stack for all
layers, as (layers, inputs, outputs).

N layers, V vocabulary, H heads, S head size.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.huggingface.families.reader import ConfigReader
from jaxmerge.model.config import DecoderConfig
from jaxmerge.registry import Registry

ALONE, IN_ROWS, BY_HEAD = "alone", "in rows", "by head"
_VOCABULARY = ("embed/embedding", "head/kernel")


class Tensor(NamedTuple):
  """One tensor of theirs and what of ours it holds.

  Attributes:
    hf: its name; {} is the layer.
    flax: names of ours, without the layer: one, or those fused into it.
    fused: how several of ours lie in it: one after the other in its rows, or
      with each head's rows together, head by head.
  """

  hf: str
  flax: tuple[str, ...]
  fused: str = ALONE

  @property
  def stacked(self) -> bool:
    return "{}" in self.hf

  def names(self, config: DecoderConfig) -> list[str]:
    """Theirs, of each layer."""
    if not self.stacked:
      return [self.hf]
    return [self.hf.format(layer) for layer in range(config.num_hidden_layers)]


def bias_of(weight: Tensor) -> Tensor:
  """The tensor of the biases beside one of weights, or of a norm's scale."""
  flax = (f"{name.rpartition('/')[0]}/bias" for name in weight.flax)
  hf = weight.hf.removesuffix("weight") + "bias"
  return weight._replace(hf=hf, flax=tuple(flax))


@dataclasses.dataclass(frozen=True)
class Family:
  """The names of a family's tensors, and its config.json both ways.

  Attributes:
    name: what its config.json calls it, as `model_type`.
    architecture: the class of transformers.
    tensors: all that any of its configs has, and maybe more.
    derived: full names of tensors that are computed from the config and hold no
      parameters (angles, causal masks); they are not read.
    read: fields of our config from theirs.
    write: keys of theirs from ours, of what this family can say.
    other_names: what some of its files call a tensor, and its name here.
    has_code: transformers must run code that lies beside the tensors.
    rank: of families that can say what a config says, the lowest is written.
  """

  name: str
  architecture: str
  tensors: tuple[Tensor, ...]
  derived: re.Pattern[str]
  read: Callable[[ConfigReader], dict[str, Any]]
  write: Callable[[DecoderConfig], dict[str, Any]]
  other_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  has_code: bool = False
  rank: int = 99

  def read_config(self, value: Mapping[str, Any]) -> DecoderConfig:
    """Ours from theirs; InputError lists what is not supported."""
    reader = ConfigReader(value)
    return reader.build(**self.read(reader))

  def write_config(self, config: DecoderConfig) -> dict[str, Any]:
    """Theirs from ours."""
    named = {"architectures": [self.architecture], "model_type": self.name}
    return {**named, **self.write(config)}

  def table(self, flax: Mapping[str, Any]) -> list[Tensor]:
    """The tensors of a model that has the parameters `flax`."""
    return [t for t in self.tensors if all(name in flax for name in t.flax)]


FAMILIES: Registry[Family] = Registry(
  "a family", "jaxmerge.huggingface.families"
)


def architectures(config: Mapping[str, Any]) -> list[str]:
  """The classes of transformers that a config.json names, if it names any."""
  named = config.get("architectures")
  return [str(name) for name in named] if isinstance(named, list) else []


def hf_shape(
  tensor: Tensor, shapes: Mapping[str, Sequence[int]], config: DecoderConfig
) -> tuple[int, ...]:
  """The shape of one layer's tensor, from the shapes of our parameters."""
  parts = []
  for name in tensor.flax:
    shape = tuple(shapes[name])[1 if tensor.stacked else 0 :]
    shape = shape[::-1] if name.endswith("kernel") else shape
    if name in _VOCABULARY:
      shape = (config.vocab_size, *shape[1:])
    parts.append(shape)
  return (sum(part[0] for part in parts), *parts[0][1:])


def to_hf(
  tensor: Tensor, parts: Sequence[np.ndarray], config: DecoderConfig
) -> np.ndarray:
  """One tensor of theirs from our parameters of one layer."""
  rows = []
  for name, part in zip(tensor.flax, parts):
    part = part.T if name.endswith("kernel") else part
    rows.append(part[: config.vocab_size] if name in _VOCABULARY else part)
  if tensor.fused == BY_HEAD:
    heads = [_by_head(part, config) for part in rows]
    joined = np.concatenate(heads, axis=1)
    return joined.reshape(-1, *joined.shape[2:])
  return np.ascontiguousarray(np.concatenate(rows) if rows[1:] else rows[0])


def to_flax(
  tensor: Tensor,
  array: np.ndarray,
  shapes: Mapping[str, Sequence[int]],
  config: DecoderConfig,
) -> list[np.ndarray]:
  """Our parameters of one layer from a tensor of the right shape.

  Rows that pad the vocabulary are zero.
  """
  if tensor.fused == BY_HEAD:
    heads = _by_head(array, config)
    split = np.split(heads, len(tensor.flax), axis=1)
    rows = [part.reshape(-1, *array.shape[1:]) for part in split]
  else:
    sizes = [
      hf_shape(Tensor(tensor.hf, (n,)), shapes, config)[0] for n in tensor.flax
    ]
    rows = np.split(array, np.cumsum(sizes)[:-1])
  parts = []
  for name, part in zip(tensor.flax, rows):
    if name in _VOCABULARY:
      missing = config.padded_vocab_size - config.vocab_size
      part = np.pad(part, [(0, missing), (0, 0)])
    parts.append(part.T if name.endswith("kernel") else part)
  return parts


def _by_head(array: np.ndarray, config: DecoderConfig) -> np.ndarray:
  return array.reshape(config.num_attention_heads, -1, *array.shape[1:])
