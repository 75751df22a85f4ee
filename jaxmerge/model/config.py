"""What a decoder is made of, as plain numbers that a checkpoint can carry."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxmerge.errors import check

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and options of a Llama-like decoder (arXiv 2302.13971).

  Attributes:
    vocab_size: tokens of the tokenizer; logits have this many columns.
    width: size of the residual stream.
    depth: number of layers.
    num_heads: query heads; head size is width / num_heads.
    num_kv_heads: key and value heads (grouped-query attention, 2305.13245).
    mlp_width: hidden size of the SwiGLU block (2002.05202).
    rope_theta: base of the rotary embedding (2104.09864).
    norm_eps: epsilon of RMSNorm (1910.07467).
    tied: whether the head is the transposed embedding.
    dtype: dtype of the computation; parameters are always float32.
    vocab_multiple: the embedding is padded to a multiple of this, so that it
      shards evenly; padded rows never reach the loss or the logits.
    remat: recompute each layer in the backward pass to save memory.
  """

  vocab_size: int
  width: int
  depth: int
  num_heads: int
  num_kv_heads: int
  mlp_width: int
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-5
  tied: bool = True
  dtype: str = "float32"
  vocab_multiple: int = 128
  remat: bool = False

  def __post_init__(self) -> None:
    check(_problems(self))

  @property
  def head_size(self) -> int:
    return self.width // self.num_heads

  @property
  def padded_vocab_size(self) -> int:
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> "DecoderConfig":
    """Builds a config; InputError lists unknown and missing keys."""
    known = {field.name for field in dataclasses.fields(cls)}
    required = {
      field.name
      for field in dataclasses.fields(cls)
      if field.default is dataclasses.MISSING
    }
    check(
      [f"unknown model key {key!r}" for key in sorted(set(values) - known)]
      + [f"missing model key {key!r}" for key in sorted(required - set(values))]
    )
    return cls(**values)


def _problems(config: DecoderConfig) -> list[str]:
  positive = [
    "vocab_size",
    "width",
    "depth",
    "num_heads",
    "num_kv_heads",
    "mlp_width",
    "vocab_multiple",
    "rope_theta",
    "norm_eps",
  ]
  problems = [
    f"model.{name} must be positive, got {getattr(config, name)}"
    for name in positive
    if not getattr(config, name) > 0
  ]
  if config.dtype not in DTYPES:
    problems.append(f"model.dtype must be one of {DTYPES}, got {config.dtype}")
  if problems:
    return problems
  if config.width % config.num_heads:
    problems.append(
      f"model.width {config.width} is not a multiple of "
      f"model.num_heads {config.num_heads}"
    )
  elif config.head_size % 2:
    problems.append(
      f"width / num_heads must be even for RoPE, got {config.head_size}"
    )
  if config.num_heads % config.num_kv_heads:
    problems.append(
      f"model.num_heads {config.num_heads} is not a multiple of "
      f"model.num_kv_heads {config.num_kv_heads}"
    )
  return problems
