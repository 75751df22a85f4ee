"""Qwen2 (2407.10671) and Qwen3 (2505.09388), the dense models.

https://huggingface.co/docs/transformers/model_doc/qwen3
"""

from collections.abc import Mapping
from typing import Any

from jaxmerge.checkpoints.families import llama
from jaxmerge.checkpoints.families.family import Family
from jaxmerge.checkpoints.families.reader import ConfigReader
from jaxmerge.model.config import DecoderConfig


def _common(reader: ConfigReader) -> dict[str, Any]:
  reader.only("hidden_act", "silu")
  reader.no_sliding_window()
  return {
    **reader.sizes(),
    **reader.rope("rope_theta"),
    "num_key_value_heads": reader.kv_heads(),
    "rms_norm_eps": reader.number("rms_norm_eps", 1e-6),
    "tie_word_embeddings": reader.flag("tie_word_embeddings", False),
  }


def _read_2(value: Mapping[str, Any]) -> DecoderConfig:
  reader = ConfigReader(value)
  head_dim = llama.head_dim(reader)
  return reader.build(
    **_common(reader), head_dim=head_dim, attention_bias="qkv"
  )


def _write_2(config: DecoderConfig) -> dict[str, Any]:
  return {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    **llama.common_keys(config),
    **({"head_dim": config.head_dim} if config.head_dim else {}),
    "use_sliding_window": False,
  }


def _read_3(value: Mapping[str, Any]) -> DecoderConfig:
  reader = ConfigReader(value)
  # Theirs is 128 where it is not said, whatever the width.
  head_dim = llama.head_dim(reader, default=128)
  bias = "all" if reader.flag("attention_bias", False) else ""
  return reader.build(
    **_common(reader),
    head_dim=head_dim,
    attention_bias=bias,
    query_key_norm="head",
  )


def _write_3(config: DecoderConfig) -> dict[str, Any]:
  return {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    **llama.common_keys(config),
    "head_dim": config.head_size,
    "attention_bias": config.attention_bias == "all",
    "use_sliding_window": False,
  }


QWEN2 = Family(
  "qwen2",
  (
    llama.EMBEDDING,
    *llama.NORMS,
    *llama.ATTENTION,
    *llama.QKV_BIASES,
    *llama.MLP,
    llama.FINAL_NORM,
    llama.HEAD,
  ),
  llama.ANGLES,
  _read_2,
  _write_2,
)
QWEN3 = Family(
  "qwen3",
  (
    llama.EMBEDDING,
    *llama.NORMS,
    *llama.ATTENTION,
    *llama.QKV_BIASES,
    *llama.OUT_BIAS,
    *llama.QUERY_KEY_NORMS,
    *llama.MLP,
    llama.FINAL_NORM,
    llama.HEAD,
  ),
  llama.ANGLES,
  _read_3,
  _write_3,
)
