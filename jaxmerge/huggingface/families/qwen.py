"""Qwen2 (2407.10671) and Qwen3 (2505.09388), the dense models.

https://huggingface.co/docs/transformers/model_doc/qwen3
"""

from typing import Any

from jaxmerge.huggingface.families import llama
from jaxmerge.huggingface.families.family import FAMILIES, Family
from jaxmerge.huggingface.families.reader import ConfigReader
from jaxmerge.model.config import DecoderConfig


def _no_sliding_window(reader: ConfigReader) -> None:
  reader.only("use_sliding_window", False)
  kinds = reader.value.get("layer_types", [])
  if not isinstance(kinds, list) or set(map(str, kinds)) - {"full_attention"}:
    reader.problems.append(
      "config.json: layer_types other than full_attention are not supported"
    )


def _read_2(reader: ConfigReader) -> dict[str, Any]:
  _no_sliding_window(reader)
  return {**llama.read_common(reader), "attention_bias": "qkv"}


def _write_2(config: DecoderConfig) -> dict[str, Any]:
  return {
    **llama.write_common(config),
    **({"head_dim": config.head_dim} if config.head_dim else {}),
    "use_sliding_window": False,
  }


def _read_3(reader: ConfigReader) -> dict[str, Any]:
  _no_sliding_window(reader)
  return {
    # Theirs is 128 where it is not said, whatever the width.
    **llama.read_common(reader, head_dim=128),
    "attention_bias": reader.attention_bias(False),
    "query_key_norm": "head",
  }


def _write_3(config: DecoderConfig) -> dict[str, Any]:
  return {
    **llama.write_common(config),
    "head_dim": config.head_size,
    "attention_bias": config.attention_bias == "all",
    "use_sliding_window": False,
  }


for _rank, _name, _class, _read, _write in (
  (1, "qwen2", "Qwen2ForCausalLM", _read_2, _write_2),
  (2, "qwen3", "Qwen3ForCausalLM", _read_3, _write_3),
):
  FAMILIES.register(
    Family(
      _name, _class, llama.TENSORS, llama.ANGLES, _read, _write, rank=_rank
    )
  )
