"""The config of a decoder: plain numbers that a checkpoint can carry."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from jaxmerge.config_fields import key
from jaxmerge.config_reading import range_problems
from jaxmerge.errors import check
from jaxmerge.model.rope import RopeScaling
from jaxmerge.old_names import renamed

# No size of a model, and no exact number of JSON's, is larger.
_LARGEST = 2**53
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes and options of a decoder that a run may choose.

  As the defaults stand, a Llama (arXiv 2302.13971). Keys that Hugging Face's
  configs have are spelled as there.
  """

  hidden_size: int = key(help="size of the residual stream", at_least=1)
  num_hidden_layers: int = key(help="number of layers", at_least=1)
  num_attention_heads: int = key(help="query heads", at_least=1)
  num_key_value_heads: int = key(
    help="key and value heads (grouped-query attention, arXiv 2305.13245)",
    at_least=1,
  )
  intermediate_size: int = key(help="hidden size of the MLP", at_least=1)
  rope_theta: float = key(
    10_000.0, "base of the rotary embedding (arXiv 2104.09864)", above=0
  )
  rms_norm_eps: float = key(1e-5, "epsilon of every norm", above=0)
  tie_word_embeddings: bool = key(True, "the head is the transposed embedding")
  dtype: str = key(
    "float32",
    "of the computation; parameters are always float32",
    choices=DTYPES,
  )
  vocab_multiple: int = key(
    128,
    "the embedding is padded to a multiple of this, so that it shards evenly; "
    "padded rows never reach the loss or the logits",
    at_least=1,
  )
  # These came later: see DecoderConfig.to_dict.
  head_dim: int = key(
    0, "size of a head; 0: hidden_size / num_attention_heads", at_least=0
  )
  norm: str = key(
    "rms",
    "RMSNorm (arXiv 1910.07467) or LayerNorm with a bias (arXiv 1607.06450)",
    choices=("rms", "layer"),
  )
  norm_after: bool = key(
    False,
    "normalise what attention and MLP give, not what they take (OLMo 2, arXiv "
    "2501.00656)",
  )
  query_key_norm: str = key(
    "",
    "RMSNorm of queries and keys, for each head (Qwen3, arXiv 2505.09388) or "
    "over the whole projection (OLMo 2)",
    choices=("", "head", "projection"),
  )
  parallel_residual: bool = key(
    False,
    "attention and MLP both read the layer's input (GPT-NeoX, arXiv "
    "2204.06745)",
  )
  attention_bias: str = key(
    "", "which projections have a bias", choices=("", "qkv", "all")
  )
  mlp_bias: bool = key(False, "the MLP's projections have a bias")
  gated_mlp: bool = key(
    True, "down(activation(gate(x)) * up(x)) (arXiv 2002.05202)"
  )
  activation: str = key(
    "silu", "of the MLP", choices=("silu", "gelu", "gelu_tanh", "relu")
  )
  rotary_fraction: float = key(
    1.0, "the part of each head that is rotated", above=0, at_most=1
  )
  unit_head: bool = key(
    False,
    "scale each token's row of the head to unit length (NormHead of Baichuan "
    "2, arXiv 2309.10305)",
  )
  logit_softcap: float = key(
    0.0,
    "logits are capped to c tanh(logits / c) (arXiv 2408.00118); 0: not",
    at_least=0,
  )

  @property
  def head_size(self) -> int:
    return self.head_dim or self.hidden_size // self.num_attention_heads

  def problems(self, prefix: str = "model.") -> list[str]:
    """Values that do not fit together, where each alone is in its range."""
    heads = self.num_attention_heads
    if min(heads, self.num_key_value_heads) < 1:
      return []
    problems = []
    rotated = int(self.head_size * self.rotary_fraction)
    if not self.head_dim and self.hidden_size % heads:
      problems.append(
        f"{prefix}hidden_size {self.hidden_size} is not a multiple of "
        f"{prefix}num_attention_heads {heads}"
      )
    elif rotated % 2 or not rotated:
      size = (
        "head_dim" if self.head_dim else "hidden_size / num_attention_heads"
      )
      part = "" if self.rotary_fraction == 1 else " * rotary_fraction"
      problems.append(f"{size}{part} must be even for RoPE, got {rotated}")
    if heads % self.num_key_value_heads:
      problems.append(
        f"{prefix}num_attention_heads {heads} is not a multiple of "
        f"{prefix}num_key_value_heads {self.num_key_value_heads}"
      )
    if self.norm_after and self.parallel_residual:
      problems.append(
        f"{prefix}norm_after and parallel_residual exclude each other"
      )
    if self.unit_head and self.tie_word_embeddings:
      problems.append(
        f"{prefix}unit_head needs a head of its own: tie_word_embeddings=False"
      )
    return problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
  """A whole decoder, perhaps one that was trained before."""

  vocab_size: int = key(help="tokens of the tokenizer", at_least=1)
  rope_scaling: RopeScaling | None = None

  def __post_init__(self) -> None:
    problems = range_problems(self, "model.")
    scaling = self.rope_scaling
    if isinstance(scaling, RopeScaling):
      problems += [f"model.{p}" for p in scaling.problems()]
    elif scaling is not None:
      problems.append(
        "model.rope_scaling must be a jaxmerge.model.rope.RopeScaling, got "
        f"{scaling!r}"
      )
    check(problems)
    problems = self.problems()
    rotated = int(self.head_size * self.rotary_fraction)
    if scaling and scaling.kind == "yarn" and self.rope_theta <= 1:
      problems.append("model.rope_scaling yarn needs a rope_theta above 1")
    if scaling and scaling.kind == "dynamic" and rotated == 2:
      problems.append("model.rope_scaling dynamic needs heads of more than 2")
    check(problems)

  @property
  def padded_vocab_size(self) -> int:
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> "DecoderConfig":
    """Builds a config from plain values, under their names of any version."""
    values = renamed(values, "model")
    scaling = values.get("rope_scaling")
    problems = _type_problems("model", cls, values)
    if isinstance(scaling, Mapping):
      problems += _type_problems("model.rope_scaling", RopeScaling, scaling)
    check(problems)
    if isinstance(scaling, Mapping):
      values = {**values, "rope_scaling": RopeScaling(**scaling)}
    return cls(**values)

  def to_dict(self) -> dict[str, Any]:
    """Plain values, as `from_dict` reads them.

    Of keys that came later only those that differ from their defaults, so that
    what an older version has saved stays equal to what it was.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(self)}
    names = list(defaults)
    later = names[names.index("head_dim") :]
    return {
      name: value
      for name, value in dataclasses.asdict(self).items()
      if name not in later or value != defaults[name]
    }


def _type_problems(
  prefix: str, cls: type, values: Mapping[str, Any]
) -> list[str]:
  """Plain values of other types than their fields; unknown and missing keys."""
  kinds = typing.get_type_hints(cls)
  required = {
    field.name
    for field in dataclasses.fields(cls)
    if field.default is dataclasses.MISSING
  }
  given = values.keys()
  return [
    *(f"unknown {prefix} key {name!r}" for name in sorted(given - kinds)),
    *(f"missing {prefix} key {name!r}" for name in sorted(required - given)),
    *(
      f"{prefix}.{name} is {values[name]!r}"
      for name in sorted(given & kinds)
      if not _is_a(values[name], kinds[name])
    ),
  ]


def _is_a(value: Any, kind: Any) -> bool:
  """NaN, Inf and numbers that no size can have are of no type."""
  if kind in (int, float):
    return type(value) in (int, kind) and abs(value) < _LARGEST
  return kind not in (str, bool) or type(value) is kind
