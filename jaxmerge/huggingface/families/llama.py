"""Llama (2302.13971), and what is built alike: DeepSeek LLM, TinyLlama, Amber.

https://huggingface.co/docs/transformers/model_doc/llama
"""

import re
from typing import Any

from jaxmerge.huggingface.families.family import (
  FAMILIES,
  Family,
  Tensor,
  bias_of,
)
from jaxmerge.huggingface.families.reader import (
  ConfigReader,
  rope_keys,
  size_keys,
)
from jaxmerge.model.config import DecoderConfig

# Older files hold the angles of each layer.
ANGLES = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def layer(hf: str, flax: str) -> Tensor:
  """A tensor of each layer of a model that is named like Llama."""
  return Tensor(f"model.layers.{{}}.{hf}.weight", (f"layers/{flax}",))


EMBEDDING = Tensor("model.embed_tokens.weight", ("embed/embedding",))
NORMS = (
  layer("input_layernorm", "attention_norm/scale"),
  layer("post_attention_layernorm", "mlp_norm/scale"),
)
PROJECTIONS = (
  layer("self_attn.q_proj", "attention/query/kernel"),
  layer("self_attn.k_proj", "attention/key/kernel"),
  layer("self_attn.v_proj", "attention/value/kernel"),
  layer("self_attn.o_proj", "attention/out/kernel"),
)
ATTENTION = (
  *PROJECTIONS,
  *map(bias_of, PROJECTIONS),
  layer("self_attn.q_norm", "attention/query_norm/scale"),
  layer("self_attn.k_norm", "attention/key_norm/scale"),
)
_MLP = (
  layer("mlp.gate_proj", "mlp/gate/kernel"),
  layer("mlp.up_proj", "mlp/up/kernel"),
  layer("mlp.down_proj", "mlp/down/kernel"),
)
MLP = (*_MLP, *map(bias_of, _MLP))
HEAD = (
  Tensor("model.norm.weight", ("final_norm/scale",)),
  Tensor("lm_head.weight", ("head/kernel",)),
)
TENSORS = (EMBEDDING, *NORMS, *ATTENTION, *MLP, *HEAD)


def read_common(
  reader: ConfigReader, *, eps: float = 1e-6, head_dim: int | None = None
) -> dict[str, Any]:
  """The options that the families named like Llama have in common.

  Args:
    reader: of the config.json.
    eps, head_dim: defaults; head_dim None: it follows from the width.
  """
  reader.only("hidden_act", "silu")
  return {
    **reader.sizes(),
    **reader.rope("rope_theta"),
    "num_key_value_heads": reader.integer(
      "num_key_value_heads", reader.value.get("num_attention_heads")
    ),
    "head_dim": reader.head_dim(head_dim),
    "rms_norm_eps": reader.number("rms_norm_eps", eps),
    "tie_word_embeddings": reader.flag("tie_word_embeddings", False),
  }


def write_common(config: DecoderConfig) -> dict[str, Any]:
  """The keys that `read_common` reads, but head_dim."""
  return {
    **size_keys(config),
    **rope_keys(config, "rope_theta"),
    "num_key_value_heads": config.num_key_value_heads,
    "rms_norm_eps": config.rms_norm_eps,
    "tie_word_embeddings": config.tie_word_embeddings,
    "hidden_act": "silu",
  }


def _read(reader: ConfigReader) -> dict[str, Any]:
  return {
    **read_common(reader),
    "attention_bias": reader.attention_bias(False),
    "mlp_bias": reader.flag("mlp_bias", False),
  }


def _write(config: DecoderConfig) -> dict[str, Any]:
  return {
    **write_common(config),
    "head_dim": config.head_size,
    "attention_bias": config.attention_bias == "all",
    "mlp_bias": config.mlp_bias,
  }


FAMILIES.register(
  Family("llama", "LlamaForCausalLM", TENSORS, ANGLES, _read, _write, rank=0)
)
