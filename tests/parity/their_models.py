"""Tiny random models of transformers, one of each family and option.

python -m tests.parity.their_models writes the golden logits that
tests/checkpoints/test_golden_logits.py compares with, without torch.
"""

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.parity.numpy_tensors import tensor

GOLDEN = pathlib.Path(__file__).parent.parent / "huggingface/golden_logits.json"

TOKENS = np.random.default_rng(0).integers(0, 57, size=(2, 12)).astype(np.int32)

_SIZES = {
  "vocab_size": 57,
  "hidden_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 40,
  "max_position_embeddings": 64,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_NEOX = {**_SIZES, "rotary_pct": 0.5, "hidden_act": "gelu"}
_LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
_YARN = {
  "rope_type": "yarn",
  "factor": 4.0,
  "original_max_position_embeddings": 16,
}


def _scaled(rope, **others):
  return {**_GROUPED, "rope_scaling": rope, "rope_theta": 500.0, **others}


MODELS = {
  "llama": ("llama", _GROUPED),
  "llama_tied": ("llama", {**_GROUPED, "tie_word_embeddings": True}),
  "llama_no_groups": ("llama", _SIZES),
  "llama_head_dim": ("llama", {**_GROUPED, "head_dim": 12}),
  "llama_biases": (
    "llama",
    {**_GROUPED, "attention_bias": True, "mlp_bias": True},
  ),
  "llama_linear": ("llama", _scaled({"rope_type": "linear", "factor": 4.0})),
  "llama_dynamic": (
    "llama",
    _scaled({"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=8),
  ),
  "llama_llama3": ("llama", _scaled(_LLAMA3)),
  "llama_yarn": ("llama", _scaled(_YARN)),
  "llama_yarn_mscale": (
    "llama",
    _scaled({**_YARN, "mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 8}),
  ),
  "gpt_neox": ("gpt_neox", _NEOX),
  "gpt_neox_tied": ("gpt_neox", {**_NEOX, "tie_word_embeddings": True}),
  "gpt_neox_in_series": (
    "gpt_neox",
    {**_NEOX, "use_parallel_residual": False, "hidden_act": "gelu_new"},
  ),
  "gpt_neox_no_bias": (
    "gpt_neox",
    {**_NEOX, "attention_bias": False, "hidden_act": "gelu_fast"},
  ),
  "gpt_neox_relu": ("gpt_neox", {**_NEOX, "hidden_act": "relu"}),
  "qwen2": ("qwen2", _GROUPED),
  "qwen2_tied": ("qwen2", {**_GROUPED, "tie_word_embeddings": True}),
  "qwen3": ("qwen3", {**_GROUPED, "head_dim": 12}),
  "qwen3_tied": (
    "qwen3",
    {**_GROUPED, "head_dim": 8, "tie_word_embeddings": True},
  ),
  "qwen3_biases": (
    "qwen3",
    {**_GROUPED, "head_dim": 16, "attention_bias": True},
  ),
  "olmo2": ("olmo2", _GROUPED),
  "olmo2_tied": ("olmo2", {**_GROUPED, "tie_word_embeddings": True}),
}


def make(name, path):
  """A model whose every parameter matters: norms and biases are random too.

  It is saved at `path`.
  """
  kind, options = MODELS[name]
  config = transformers.AutoConfig.for_model(kind, **options)
  # Token ids must be of the vocabulary; they mean nothing here.
  config.bos_token_id = config.eos_token_id = config.pad_token_id = 1
  model = transformers.AutoModelForCausalLM.from_config(config)
  model.save_pretrained(path)
  file = pathlib.Path(path) / "model.safetensors"
  tensors = {n: tensor(n, a.shape) for n, a in load_file(file).items()}
  save_file(tensors, file, {"format": "pt"})
  return load(path)


def load(path, **options):
  model = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
  return model.eval()


def logits(model, tokens=TOKENS):
  with torch.no_grad():
    return model(torch.from_numpy(tokens).long()).logits.numpy()


def golden(name):
  """What a machine without torch needs to make the model, and its logits."""
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory)
    last_BxV = logits(make(name, path))[:, -1]
    tensors = load_file(path / "model.safetensors")
    return {
      "config": json.loads((path / "config.json").read_text()),
      "shapes": {n: list(tensors[n].shape) for n in sorted(tensors)},
      "last_logits": [[float(f"{x:.8g}") for x in row] for row in last_BxV],
    }


if __name__ == "__main__":
  value = {"tokens": TOKENS.tolist(), "models": {n: golden(n) for n in MODELS}}
  GOLDEN.write_text(json.dumps(value, separators=(",", ":")) + "\n")
