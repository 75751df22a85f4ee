"""GPT-NeoX (2204.06745) and Pythia (2304.01373).

https://huggingface.co/docs/transformers/model_doc/gpt_neox
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxmerge.checkpoints.families.family import BY_HEAD, Family, Tensor
from jaxmerge.checkpoints.families.reader import (
  ConfigReader,
  rope_keys,
  size_keys,
)
from jaxmerge.model.config import DecoderConfig

_ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
  "silu": "silu",
}
_THEIR_ACTIVATION = {
  "gelu": "gelu",
  "gelu_tanh": "gelu_pytorch_tanh",
  "relu": "relu",
  "silu": "silu",
}


def _layer(theirs: str, *ours: str, fused: str = "alone") -> Tensor:
  names = tuple(f"layers/{name}" for name in ours)
  return Tensor(f"gpt_neox.layers.{{}}.{theirs}", names, fused)


def _fused(kind: str, what: str) -> Tensor:
  ours = (f"attention/{name}/{what}" for name in ("query", "key", "value"))
  return _layer(f"attention.query_key_value.{kind}", *ours, fused=BY_HEAD)


def _read(value: Mapping[str, Any]) -> DecoderConfig:
  reader = ConfigReader(value)
  sizes = reader.sizes()
  return reader.build(
    **sizes,
    **reader.rope("rotary_emb_base", "rotary_pct", 0.25),
    num_key_value_heads=sizes["num_attention_heads"],
    norm="layer",
    rms_norm_eps=reader.number("layer_norm_eps", 1e-5),
    tie_word_embeddings=reader.flag("tie_word_embeddings", False),
    parallel_residual=reader.flag("use_parallel_residual", True),
    attention_bias="all" if reader.flag("attention_bias", True) else "",
    mlp_bias=True,
    gated_mlp=False,
    activation=reader.choice("hidden_act", _ACTIVATIONS, "gelu"),
  )


def _write(config: DecoderConfig) -> dict[str, Any]:
  return {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    **size_keys(config),
    **rope_keys(config, "rotary_emb_base"),
    "rotary_pct": config.rotary_fraction,
    "layer_norm_eps": config.rms_norm_eps,
    "tie_word_embeddings": config.tie_word_embeddings,
    "use_parallel_residual": config.parallel_residual,
    "attention_bias": config.attention_bias == "all",
    "hidden_act": _THEIR_ACTIVATION[config.activation],
  }


FAMILY = Family(
  "gpt_neox",
  (
    Tensor("gpt_neox.embed_in.weight", ("embed/embedding",)),
    _layer("input_layernorm.weight", "attention_norm/scale"),
    _layer("input_layernorm.bias", "attention_norm/bias"),
    _layer("post_attention_layernorm.weight", "mlp_norm/scale"),
    _layer("post_attention_layernorm.bias", "mlp_norm/bias"),
    _fused("weight", "kernel"),
    _fused("bias", "bias"),
    _layer("attention.dense.weight", "attention/out/kernel"),
    _layer("attention.dense.bias", "attention/out/bias"),
    _layer("mlp.dense_h_to_4h.weight", "mlp/up/kernel"),
    _layer("mlp.dense_h_to_4h.bias", "mlp/up/bias"),
    _layer("mlp.dense_4h_to_h.weight", "mlp/down/kernel"),
    _layer("mlp.dense_4h_to_h.bias", "mlp/down/bias"),
    Tensor("gpt_neox.final_layer_norm.weight", ("final_norm/scale",)),
    Tensor("gpt_neox.final_layer_norm.bias", ("final_norm/bias",)),
    Tensor("embed_out.weight", ("head/kernel",)),
  ),
  re.compile(
    r"gpt_neox\.layers\.\d+\.attention\."
    r"(bias|masked_bias|rotary_emb\.inv_freq)"
  ),
  _read,
  _write,
  {"lm_head.weight": "embed_out.weight"},
)
