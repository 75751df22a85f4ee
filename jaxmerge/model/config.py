"""What a decoder is made of, as plain numbers that a checkpoint can carry."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from jaxmerge.errors import check
from jaxmerge.model.rope import RopeScaling

# No size of a model, and no exact number of JSON's, is larger.
_LARGEST = 2**53
DTYPES = ("float32", "bfloat16")
_CHOICES = {
  "dtype": DTYPES,
  "norm": ("rms", "layer"),
  "query_key_norm": ("", "head", "projection"),
  "attention_bias": ("", "qkv", "all"),
  "activation": ("silu", "gelu", "gelu_tanh", "relu"),
}
# Options that Llama leaves at their defaults; `to_dict` names only those that
# differ, so that what an older version has saved stays equal to what it was.
_BEYOND_LLAMA = (
  "head_dim",
  "norm",
  "norm_after",
  "query_key_norm",
  "parallel_residual",
  "attention_bias",
  "mlp_bias",
  "gated_mlp",
  "activation",
  "rotary_fraction",
  "rope_scaling",
  "unit_head",
)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and options of a decoder; as they stand, a Llama (2302.13971).

  Attributes:
    vocab_size: tokens of the tokenizer; logits have this many columns.
    width: size of the residual stream.
    depth: number of layers.
    num_heads: query heads.
    num_kv_heads: key and value heads (grouped-query attention, 2305.13245).
    mlp_width: hidden size of the MLP.
    rope_theta: base of the rotary embedding (2104.09864).
    norm_eps: epsilon of every norm.
    tied: whether the head is the transposed embedding.
    dtype: dtype of the computation; parameters are always float32.
    vocab_multiple: the embedding is padded to a multiple of this, so that it
      shards evenly; padded rows never reach the loss or the logits.
    remat: recompute each layer in the backward pass to save memory.
    head_dim: size of a head; 0 is width / num_heads.
    norm: "rms" (1910.07467) or "layer" (1607.06450, with a bias).
    norm_after: normalise what attention and MLP give, not what they take
      (OLMo 2, 2501.00656).
    query_key_norm: RMSNorm of queries and keys, for each "head" (Qwen3,
      2505.09388) or over the whole "projection" (OLMo 2); "" is none.
    parallel_residual: attention and MLP both read the layer's input and are
      added together (GPT-NeoX, 2204.06745).
    attention_bias: which projections have a bias: "", "qkv" or "all".
    mlp_bias: whether those of the MLP have one.
    gated_mlp: down(activation(gate(x)) * up(x)) (2002.05202), or without gate.
    activation: "silu", "gelu" (exact), "gelu_tanh" or "relu".
    rotary_fraction: which part of each head is rotated.
    rope_scaling: how positions are stretched for a longer context.
    unit_head: each token's row of the head is scaled to unit length (the
      NormHead of Baichuan 2, 2309.10305).
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
  head_dim: int = 0
  norm: str = "rms"
  norm_after: bool = False
  query_key_norm: str = ""
  parallel_residual: bool = False
  attention_bias: str = ""
  mlp_bias: bool = False
  gated_mlp: bool = True
  activation: str = "silu"
  rotary_fraction: float = 1.0
  rope_scaling: RopeScaling | None = None
  unit_head: bool = False

  def __post_init__(self) -> None:
    check(_problems(self))

  @property
  def head_size(self) -> int:
    return self.head_dim or self.width // self.num_heads

  @property
  def padded_vocab_size(self) -> int:
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> "DecoderConfig":
    """Builds a config; InputError lists what is wrong with keys and values."""
    scaling = values.get("rope_scaling")
    problems = _type_problems("model", cls, values)
    if isinstance(scaling, Mapping):
      problems += _type_problems("model.rope_scaling", RopeScaling, scaling)
    check(problems)
    if isinstance(scaling, Mapping):
      values = {**values, "rope_scaling": RopeScaling(**scaling)}
    return cls(**values)

  def to_dict(self) -> dict[str, Any]:
    """What `from_dict` reads: plain values, options of a Llama left out."""
    defaults = {f.name: f.default for f in dataclasses.fields(self)}
    return {
      name: value
      for name, value in dataclasses.asdict(self).items()
      if name not in _BEYOND_LLAMA or value != defaults[name]
    }


def _type_problems(
  prefix: str, cls: type, values: Mapping[str, Any]
) -> list[str]:
  """Plain values of other types than their fields; unknown and missing keys.

  NaN, Inf and numbers that no size can have are of no type.
  """
  kinds = typing.get_type_hints(cls)
  required = {
    field.name
    for field in dataclasses.fields(cls)
    if field.default is dataclasses.MISSING
  }
  given = set(values)
  problems = [
    f"unknown {prefix} key {key!r}" for key in sorted(given - set(kinds))
  ]
  problems += [
    f"missing {prefix} key {key!r}" for key in sorted(required - given)
  ]
  for key in sorted(given & set(kinds)):
    value, kind = values[key], kinds[key]
    if kind in (int, float):
      types = (int,) if kind is int else (int, float)
      is_right = type(value) in types and abs(value) < _LARGEST
    elif kind in (str, bool):
      is_right = type(value) is kind
    else:
      is_right = True  # a section of its own
    if not is_right:
      problems.append(f"{prefix}.{key} is {value!r}")
  return problems


def option_types() -> dict[str, type]:
  """Options beyond a Llama's that a run may be trained with, and their types.

  `rope_scaling` is for models that were trained before.
  """
  return {
    field.name: type(field.default)
    for field in dataclasses.fields(DecoderConfig)
    if field.name in _BEYOND_LLAMA and field.name != "rope_scaling"
  }


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
  problems += [
    f"model.{name} must be one of {choices}, got {getattr(config, name)!r}"
    for name, choices in _CHOICES.items()
    if getattr(config, name) not in choices
  ]
  if isinstance(config.rope_scaling, RopeScaling):
    problems += [f"model.{p}" for p in config.rope_scaling.problems()]
  elif config.rope_scaling is not None:
    problems.append(
      "model.rope_scaling must be a jaxmerge.model.rope.RopeScaling, got "
      f"{config.rope_scaling!r}"
    )
  if config.head_dim < 0:
    problems.append(f"model.head_dim must be >= 0, got {config.head_dim}")
  if not 0 < config.rotary_fraction <= 1:
    problems.append(
      f"model.rotary_fraction must be in (0, 1], got {config.rotary_fraction}"
    )
  return problems or _contradictions(config)


def _contradictions(config: DecoderConfig) -> list[str]:
  """What does not fit together, where each value alone is fine."""
  problems = []
  rotated = int(config.head_size * config.rotary_fraction)
  if not config.head_dim and config.width % config.num_heads:
    problems.append(
      f"model.width {config.width} is not a multiple of "
      f"model.num_heads {config.num_heads}"
    )
  elif rotated % 2 or not rotated:
    of = "head_dim" if config.head_dim else "width / num_heads"
    part = "" if config.rotary_fraction == 1 else " * rotary_fraction"
    problems.append(f"{of}{part} must be even for RoPE, got {rotated}")
  if config.num_heads % config.num_kv_heads:
    problems.append(
      f"model.num_heads {config.num_heads} is not a multiple of "
      f"model.num_kv_heads {config.num_kv_heads}"
    )
  if config.norm_after and config.parallel_residual:
    problems.append("model.norm_after and parallel_residual exclude each other")
  if config.unit_head and config.tied:
    problems.append("model.unit_head needs a head of its own: tied=False")
  scaling = config.rope_scaling
  if scaling and scaling.kind == "yarn" and config.rope_theta <= 1:
    problems.append("model.rope_scaling yarn needs a rope_theta above 1")
  if scaling and scaling.kind == "dynamic" and rotated == 2:
    problems.append("model.rope_scaling dynamic needs heads of more than 2")
  return problems
