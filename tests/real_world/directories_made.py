"""Hugging Face directories as people have them, in their smallest form."""

import base64
import json

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 10,
  "hidden_size": 8,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "num_key_value_heads": 2,
  "intermediate_size": 6,
  "rms_norm_eps": 1e-06,
  "tie_word_embeddings": False,
  "rope_theta": 500000.0,
}
_LAYER = "model.layers.0."
SHAPES = {
  "model.embed_tokens.weight": (10, 8),
  **{f"{_LAYER}self_attn.{n}_proj.weight": (8, 8) for n in "qkvo"},
  _LAYER + "mlp.gate_proj.weight": (6, 8),
  _LAYER + "mlp.up_proj.weight": (6, 8),
  _LAYER + "mlp.down_proj.weight": (8, 6),
  _LAYER + "input_layernorm.weight": (8,),
  _LAYER + "post_attention_layernorm.weight": (8,),
  "model.norm.weight": (8,),
  "lm_head.weight": (10, 8),
}
WORDS = ["<s>", "a", "b", "c", "ab", "bc", "d", "e", "f", "g"]
MERGES = [("a", "b"), ("b", "c")]


def tensors(seed):
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in SHAPES.items()
  }


def tokenizer_json(words=WORDS, *, added=("<s>",), merges=MERGES, **more):
  """A tokenizer.json of byte-level BPE, as the library writes it."""
  entries = [
    {"id": words.index(word), "content": word, "special": True}
    for word in added
  ]
  model = {
    "type": "BPE",
    "vocab": {word: i for i, word in enumerate(words)},
    "merges": [" ".join(pair) for pair in merges],
  }
  return {"version": "1.0", "added_tokens": entries, "model": model, **more}


def directory(path, seed, *, config=CONFIG, files=None, name_of=str):
  """A directory of a tiny Llama.

  Args:
    path: does not exist yet.
    seed: of its tensors.
    config: config.json; None: there is none.
    files: what lies beside it by name: bytes, texts, JSON values, or a Path
      that is linked to.
    name_of: changes the names of tensors.
  """
  path.mkdir(parents=True)
  named = {name_of(name): x for name, x in tensors(seed).items()}
  save_file(named, path / "model.safetensors", {"format": "pt"})
  given = {} if config is None else {"config.json": config}
  for name, content in (given | (files or {})).items():
    write(path / name, content)
  return path


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  if not isinstance(content, str | bytes):
    content = json.dumps(content)
  if isinstance(content, str):
    content = content.encode()
  path.write_bytes(content)


def pieces(*words):
  """A tokenizer.model of SentencePiece that has these words, and <unk> first.

  Field by field: a piece is its text (1), its score (2) and its kind (3).
  """
  content = b""
  for i, word in enumerate(("<unk>", *words)):
    text = word.encode()
    kind = b"\x18\x02" if i == 0 else b"\x18\x01"
    score = b"\x15" + np.float32(-i).tobytes()
    piece = b"\x0a" + bytes([len(text)]) + text + score + kind
    content += b"\x0a" + bytes([len(piece)]) + piece
  trainer = b"\x18\x02"  # model_type: BPE
  return content + b"\x12\x02" + trainer + b"\x1a\x00"


def tekken(words, special=("<s>",), *, version="v7"):
  """A tekken.json of Mistral's."""
  entries = [
    {
      "rank": i,
      "token_bytes": base64.b64encode(word.encode()).decode(),
      "token_str": word,
    }
    for i, word in enumerate(words)
  ]
  value = {
    "config": {
      "pattern": ".",
      "default_vocab_size": len(words) + len(special),
      "default_num_special_tokens": len(special),
      "version": version,
    },
    "vocab": entries,
  }
  if version != "v3":
    value["special_tokens"] = [
      {"rank": i, "token_str": name, "is_control": True}
      for i, name in enumerate(special)
    ]
  return value
