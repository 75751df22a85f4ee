"""Baichuan2-7B (2309.10305): a Llama with fused W_pack and a NormHead.

Its config.json does not say which Baichuan it is. The 13B models use ALiBi
(and have no max_position_embeddings); the first Baichuan-7B has 64,000 tokens
and an ordinary head.

https://huggingface.co/baichuan-inc/Baichuan2-7B-Base
"""

from typing import Any

from jaxmerge.huggingface.families import llama
from jaxmerge.huggingface.families.family import (
  FAMILIES,
  IN_ROWS,
  Family,
  Tensor,
)
from jaxmerge.huggingface.families.reader import ConfigReader, size_keys
from jaxmerge.model.config import DecoderConfig

_VOCABULARY_OF_THE_FIRST = 64_000


def _read(reader: ConfigReader) -> dict[str, Any]:
  reader.only("hidden_act", "silu")
  reader.only("tie_word_embeddings", False)
  if "max_position_embeddings" not in reader.value:
    reader.problems.append(
      "config.json: a Baichuan without max_position_embeddings is a 13B; its "
      "ALiBi positions are not supported"
    )
  if reader.value.get("vocab_size") == _VOCABULARY_OF_THE_FIRST:
    reader.problems.append(
      "config.json: the first Baichuan (64,000 tokens) is not supported, only "
      "Baichuan2"
    )
  # Baichuan's own code knows one base and no scaling.
  reader.only("rope_theta", 10_000.0)
  reader.only("rope_scaling", None)
  sizes = reader.sizes()
  return {
    **sizes,
    "num_key_value_heads": sizes["num_attention_heads"],
    "rms_norm_eps": reader.number("rms_norm_eps", 1e-6),
    "tie_word_embeddings": False,
    "unit_head": True,
  }


def _write(config: DecoderConfig) -> dict[str, Any]:
  return {
    "max_position_embeddings": 4096,
    "model_max_length": 4096,
    **size_keys(config),
    "rms_norm_eps": config.rms_norm_eps,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
  }


_PACK = Tensor(
  "model.layers.{}.self_attn.W_pack.weight",
  tuple(f"layers/attention/{n}/kernel" for n in ("query", "key", "value")),
  IN_ROWS,
)

FAMILIES.register(
  Family(
    "baichuan",
    "BaichuanForCausalLM",
    (
      llama.EMBEDDING,
      *llama.NORMS,
      _PACK,
      llama.PROJECTIONS[-1],
      *llama.MLP,
      *llama.HEAD,
    ),
    llama.ANGLES,
    _read,
    _write,
    has_code=True,
    rank=5,
  )
)
