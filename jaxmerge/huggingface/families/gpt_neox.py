"""GPT-NeoX (2204.06745) and Pythia (2304.01373).

https://huggingface.co/docs/transformers/model_doc/gpt_neox
"""

import re
from typing import Any

from jaxmerge.huggingface.families.family import (
  BY_HEAD,
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

# Theirs and ours; of two names the first is written.
_ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "relu": "relu",
  "silu": "silu",
}


def _layer(hf: str, *flax: str, fused: str = "alone") -> tuple[Tensor, Tensor]:
  names = tuple(f"layers/{name}" for name in flax)
  weight = Tensor(f"gpt_neox.layers.{{}}.{hf}.weight", names, fused)
  return weight, bias_of(weight)


def _read(reader: ConfigReader) -> dict[str, Any]:
  sizes = reader.sizes()
  return {
    **sizes,
    **reader.rope("rotary_emb_base", "rotary_pct", 0.25),
    "num_key_value_heads": sizes["num_attention_heads"],
    "norm": "layer",
    "rms_norm_eps": reader.number("layer_norm_eps", 1e-5),
    "tie_word_embeddings": reader.flag("tie_word_embeddings", False),
    "parallel_residual": reader.flag("use_parallel_residual", True),
    "attention_bias": reader.attention_bias(True),
    "mlp_bias": True,
    "gated_mlp": False,
    "activation": reader.choice("hidden_act", _ACTIVATIONS, "gelu"),
  }


def _write(config: DecoderConfig) -> dict[str, Any]:
  known = (hf for hf, ours in _ACTIVATIONS.items() if ours == config.activation)
  return {
    **size_keys(config),
    **rope_keys(config, "rotary_emb_base"),
    "rotary_pct": config.rotary_fraction,
    "layer_norm_eps": config.rms_norm_eps,
    "tie_word_embeddings": config.tie_word_embeddings,
    "use_parallel_residual": config.parallel_residual,
    "attention_bias": config.attention_bias == "all",
    "hidden_act": next(known),
  }


FAMILIES.register(
  Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    (
      Tensor("gpt_neox.embed_in.weight", ("embed/embedding",)),
      *_layer("input_layernorm", "attention_norm/scale"),
      *_layer("post_attention_layernorm", "mlp_norm/scale"),
      *_layer(
        "attention.query_key_value",
        "attention/query/kernel",
        "attention/key/kernel",
        "attention/value/kernel",
        fused=BY_HEAD,
      ),
      *_layer("attention.dense", "attention/out/kernel"),
      *_layer("mlp.dense_h_to_4h", "mlp/up/kernel"),
      *_layer("mlp.dense_4h_to_h", "mlp/down/kernel"),
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
    rank=4,
  )
)
