"""OLMo 2 (2501.00656): norms after attention and MLP, and of whole projections.

https://huggingface.co/docs/transformers/model_doc/olmo2
"""

from collections.abc import Mapping
from typing import Any

from jaxmerge.checkpoints.families import llama
from jaxmerge.checkpoints.families.family import Family
from jaxmerge.checkpoints.families.reader import ConfigReader
from jaxmerge.model.config import DecoderConfig


def _read(value: Mapping[str, Any]) -> DecoderConfig:
  reader = ConfigReader(value)
  reader.only("hidden_act", "silu")
  return reader.build(
    **reader.sizes(),
    **reader.rope("rope_theta"),
    num_key_value_heads=reader.kv_heads(),
    head_dim=llama.head_dim(reader),
    rms_norm_eps=reader.number("rms_norm_eps", 1e-5),
    tie_word_embeddings=reader.flag("tie_word_embeddings", False),
    attention_bias="all" if reader.flag("attention_bias", False) else "",
    query_key_norm="projection",
    norm_after=True,
  )


def _write(config: DecoderConfig) -> dict[str, Any]:
  return {
    "architectures": ["Olmo2ForCausalLM"],
    "model_type": "olmo2",
    **llama.common_keys(config),
    **({"head_dim": config.head_dim} if config.head_dim else {}),
    "attention_bias": config.attention_bias == "all",
  }


FAMILY = Family(
  "olmo2",
  (
    llama.EMBEDDING,
    *llama.ATTENTION,
    *llama.QKV_BIASES,
    *llama.OUT_BIAS,
    *llama.QUERY_KEY_NORMS,
    llama.layer("post_attention_layernorm.weight", "attention_norm/scale"),
    *llama.MLP,
    llama.layer("post_feedforward_layernorm.weight", "mlp_norm/scale"),
    llama.FINAL_NORM,
    llama.HEAD,
  ),
  llama.ANGLES,
  _read,
  _write,
)
