"""A family of models: which of their tensors hold which of our parameters.

Theirs holds one tensor a layer, as (outputs, inputs); ours one stack for all
layers, as (layers, inputs, outputs).

N layers, V vocabulary, H heads, S head size.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.model.config import DecoderConfig

ALONE, IN_ROWS, BY_HEAD = "alone", "in rows", "by head"
_VOCABULARY = ("embed/embedding", "head/kernel")


class Tensor(NamedTuple):
  """One tensor of theirs and what of ours it holds.

  Attributes:
    theirs: its name; {} is the layer.
    ours: names of ours, without the layer: one, or those fused into it.
    fused: how several of ours lie in it: one after the other in its rows, or
      with each head's rows together, head by head.
  """

  theirs: str
  ours: tuple[str, ...]
  fused: str = ALONE

  @property
  def stacked(self) -> bool:
    return "{}" in self.theirs

  def names(self, config: DecoderConfig) -> list[str]:
    """Theirs, of each layer."""
    if not self.stacked:
      return [self.theirs]
    return [
      self.theirs.format(layer) for layer in range(config.num_hidden_layers)
    ]


class Family(NamedTuple):
  """How a family names its tensors and describes itself.

  Attributes:
    model_type: what its config.json calls it.
    tensors: all that any of its configs has.
    derived: full names of tensors that are computed from the config and hold no
      parameters (angles, causal masks); they are not read.
    read_config: ours from theirs; InputError lists what is not supported.
    write_config: theirs from ours, of what this family can say.
    other_names: what some of its files call a tensor, and its name here.
    has_code: transformers must run code that lies beside the tensors.
  """

  model_type: str
  tensors: tuple[Tensor, ...]
  derived: re.Pattern[str]
  read_config: Callable[[Mapping[str, Any]], DecoderConfig]
  write_config: Callable[[DecoderConfig], dict[str, Any]]
  other_names: Mapping[str, str] = {}
  has_code: bool = False

  def table(self, ours: Mapping[str, Any]) -> list[Tensor]:
    """The tensors of a model that has the parameters `ours`."""
    return [t for t in self.tensors if all(name in ours for name in t.ours)]


def their_shape(
  tensor: Tensor, shapes: Mapping[str, Sequence[int]], config: DecoderConfig
) -> tuple[int, ...]:
  """The shape of one layer's tensor, from the shapes of our parameters."""
  parts = []
  for name in tensor.ours:
    shape = tuple(shapes[name])[1 if tensor.stacked else 0 :]
    shape = shape[::-1] if name.endswith("kernel") else shape
    if name in _VOCABULARY:
      shape = (config.vocab_size, *shape[1:])
    parts.append(shape)
  return (sum(part[0] for part in parts), *parts[0][1:])


def to_theirs(
  tensor: Tensor, parts: Sequence[np.ndarray], config: DecoderConfig
) -> np.ndarray:
  """One tensor of theirs from our parameters of one layer."""
  rows = []
  for name, part in zip(tensor.ours, parts):
    part = part.T if name.endswith("kernel") else part
    rows.append(part[: config.vocab_size] if name in _VOCABULARY else part)
  if tensor.fused == BY_HEAD:
    heads = [_by_head(part, config) for part in rows]
    joined = np.concatenate(heads, axis=1)
    return joined.reshape(-1, *joined.shape[2:])
  return np.ascontiguousarray(np.concatenate(rows) if rows[1:] else rows[0])


def to_ours(
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
    split = np.split(heads, len(tensor.ours), axis=1)
    rows = [part.reshape(-1, *array.shape[1:]) for part in split]
  else:
    sizes = [
      their_shape(Tensor(tensor.theirs, (n,)), shapes, config)[0]
      for n in tensor.ours
    ]
    rows = np.split(array, np.cumsum(sizes)[:-1])
  parts = []
  for name, part in zip(tensor.ours, rows):
    if name in _VOCABULARY:
      missing = config.padded_vocab_size - config.vocab_size
      part = np.pad(part, [(0, missing), (0, 0)])
    parts.append(part.T if name.endswith("kernel") else part)
  return parts


def _by_head(array: np.ndarray, config: DecoderConfig) -> np.ndarray:
  return array.reshape(config.num_attention_heads, -1, *array.shape[1:])
