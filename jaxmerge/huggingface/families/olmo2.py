"""OLMo 2 (2501.00656): norms after attention and MLP, and of whole projections.

https://huggingface.co/docs/transformers/model_doc/olmo2
"""

from typing import Any

from jaxmerge.huggingface.families import llama
from jaxmerge.huggingface.families.family import FAMILIES, Family
from jaxmerge.huggingface.families.reader import ConfigReader
from jaxmerge.model.config import DecoderConfig


def _read(reader: ConfigReader) -> dict[str, Any]:
  return {
    **llama.read_common(reader, eps=1e-5),
    "attention_bias": reader.attention_bias(False),
    "query_key_norm": "projection",
    "norm_after": True,
  }


def _write(config: DecoderConfig) -> dict[str, Any]:
  return {
    **llama.write_common(config),
    **({"head_dim": config.head_dim} if config.head_dim else {}),
    "attention_bias": config.attention_bias == "all",
  }


FAMILIES.register(
  Family(
    "olmo2",
    "Olmo2ForCausalLM",
    (
      llama.EMBEDDING,
      *llama.ATTENTION,
      llama.layer("post_attention_layernorm", "attention_norm/scale"),
      *llama.MLP,
      llama.layer("post_feedforward_layernorm", "mlp_norm/scale"),
      *llama.HEAD,
    ),
    llama.ANGLES,
    _read,
    _write,
    rank=3,
  )
)
