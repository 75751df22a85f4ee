"""Llama (2302.13971), and what is built alike: DeepSeek LLM, TinyLlama, Amber.

https://huggingface.co/docs/transformers/model_doc/llama
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxmerge.checkpoints.families.family import Family, Tensor
from jaxmerge.checkpoints.families.reader import (
  ConfigReader,
  rope_keys,
  size_keys,
)
from jaxmerge.model.config import DecoderConfig

# Older files hold the angles of each layer.
ANGLES = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

EMBEDDING = Tensor("model.embed_tokens.weight", ("embed/embedding",))
HEAD = Tensor("lm_head.weight", ("head/kernel",))
FINAL_NORM = Tensor("model.norm.weight", ("final_norm/scale",))


def layer(theirs: str, *ours: str, fused: str = "alone") -> Tensor:
  """A tensor of each layer of a model that is named like Llama."""
  names = tuple(f"layers/{name}" for name in ours)
  return Tensor(f"model.layers.{{}}.{theirs}", names, fused)


NORMS = (
  layer("input_layernorm.weight", "attention_norm/scale"),
  layer("post_attention_layernorm.weight", "mlp_norm/scale"),
)
ATTENTION = (
  layer("self_attn.q_proj.weight", "attention/query/kernel"),
  layer("self_attn.k_proj.weight", "attention/key/kernel"),
  layer("self_attn.v_proj.weight", "attention/value/kernel"),
  layer("self_attn.o_proj.weight", "attention/out/kernel"),
)
QKV_BIASES = (
  layer("self_attn.q_proj.bias", "attention/query/bias"),
  layer("self_attn.k_proj.bias", "attention/key/bias"),
  layer("self_attn.v_proj.bias", "attention/value/bias"),
)
OUT_BIAS = (layer("self_attn.o_proj.bias", "attention/out/bias"),)
QUERY_KEY_NORMS = (
  layer("self_attn.q_norm.weight", "attention/query_norm/scale"),
  layer("self_attn.k_norm.weight", "attention/key_norm/scale"),
)
MLP = (
  layer("mlp.gate_proj.weight", "mlp/gate/kernel"),
  layer("mlp.up_proj.weight", "mlp/up/kernel"),
  layer("mlp.down_proj.weight", "mlp/down/kernel"),
)
_MLP_BIASES = (
  layer("mlp.gate_proj.bias", "mlp/gate/bias"),
  layer("mlp.up_proj.bias", "mlp/up/bias"),
  layer("mlp.down_proj.bias", "mlp/down/bias"),
)


def _read(value: Mapping[str, Any]) -> DecoderConfig:
  reader = ConfigReader(value)
  reader.only("hidden_act", "silu")
  return reader.build(
    **reader.sizes(),
    **reader.rope("rope_theta"),
    num_key_value_heads=reader.kv_heads(),
    head_dim=head_dim(reader),
    rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
    tie_word_embeddings=reader.flag("tie_word_embeddings", False),
    attention_bias="all" if reader.flag("attention_bias", False) else "",
    mlp_bias=reader.flag("mlp_bias", False),
  )


def head_dim(reader: ConfigReader, default: int | None = None) -> int:
  """The size of a head, 0 where it follows from the width."""
  width = reader.integer("hidden_size")
  heads = reader.integer("num_attention_heads")
  size = reader.integer("head_dim", default or max(width // heads, 1))
  return 0 if size * heads == width else size


def common_keys(config: DecoderConfig) -> dict[str, Any]:
  """What the families that are named like Llama say alike."""
  return {
    **size_keys(config),
    **rope_keys(config, "rope_theta"),
    "num_key_value_heads": config.num_key_value_heads,
    "rms_norm_eps": config.rms_norm_eps,
    "tie_word_embeddings": config.tie_word_embeddings,
    "hidden_act": "silu",
  }


def _write(config: DecoderConfig) -> dict[str, Any]:
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    **common_keys(config),
    "head_dim": config.head_size,
    "attention_bias": config.attention_bias == "all",
    "mlp_bias": config.mlp_bias,
  }


FAMILY = Family(
  "llama",
  (
    EMBEDDING,
    *NORMS,
    *ATTENTION,
    *QKV_BIASES,
    *OUT_BIAS,
    *MLP,
    *_MLP_BIASES,
    FINAL_NORM,
    HEAD,
  ),
  ANGLES,
  _read,
  _write,
)
