"""Llama checkpoints in the Hugging Face layout, both ways exact.

Theirs holds one tensor a layer, as (outputs, inputs); ours one stack for all
layers, as (layers, inputs, outputs).

N layers, V vocabulary.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxmerge.checkpoints.metadata import tree_of_leaves
from jaxmerge.checkpoints.store import check_output
from jaxmerge.errors import InputError, check
from jaxmerge.files import replace_directory, write_json, write_text
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import Params, abstract_decoder
from jaxmerge.parallel.rules import named_leaves

# Ours -> (theirs, whether the matrix is transposed); {} is the layer.
LLAMA_NAMES: Mapping[str, tuple[str, bool]] = {
  "embed/embedding": ("model.embed_tokens.weight", False),
  "layers/attention_norm/scale": (
    "model.layers.{}.input_layernorm.weight",
    False,
  ),
  "layers/attention/query/kernel": (
    "model.layers.{}.self_attn.q_proj.weight",
    True,
  ),
  "layers/attention/key/kernel": (
    "model.layers.{}.self_attn.k_proj.weight",
    True,
  ),
  "layers/attention/value/kernel": (
    "model.layers.{}.self_attn.v_proj.weight",
    True,
  ),
  "layers/attention/out/kernel": (
    "model.layers.{}.self_attn.o_proj.weight",
    True,
  ),
  "layers/mlp_norm/scale": (
    "model.layers.{}.post_attention_layernorm.weight",
    False,
  ),
  "layers/mlp/gate/kernel": ("model.layers.{}.mlp.gate_proj.weight", True),
  "layers/mlp/up/kernel": ("model.layers.{}.mlp.up_proj.weight", True),
  "layers/mlp/down/kernel": ("model.layers.{}.mlp.down_proj.weight", True),
  "final_norm/scale": ("model.norm.weight", False),
  "head/kernel": ("lm_head.weight", True),
}
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
_WEIGHTS = "model.safetensors"
_EXACT = ("float32", "bfloat16", "float16")


def is_hugging_face(path: epath.PathLike) -> bool:
  return (epath.Path(path) / "config.json").exists()


def to_tensors(params: Params, config: DecoderConfig) -> dict[str, np.ndarray]:
  """Their tensors from our parameters; rows of padding are left out."""
  tensors: dict[str, np.ndarray] = {}
  for name, leaf in named_leaves(params).items():
    theirs, transposed = LLAMA_NAMES[name]
    array = np.asarray(jax.device_get(leaf))
    if transposed:
      array = np.swapaxes(array, -1, -2)
    if theirs in _VOCABULARY:
      array = array[: config.vocab_size]
    if "{}" in theirs:
      for layer in range(config.depth):
        tensors[theirs.format(layer)] = np.ascontiguousarray(array[layer])
    else:
      tensors[theirs] = np.ascontiguousarray(array)
  return tensors


def from_tensors(
  tensors: Mapping[str, np.ndarray], config: DecoderConfig
) -> Params:
  """Our parameters from their tensors; the padding is zero.

  Raises:
    InputError: lists every tensor that is missing, left over, or of a shape or
      dtype that does not fit.
  """
  _, abstract = abstract_decoder(config)
  leaves: dict[str, np.ndarray] = {}
  problems: list[str] = []
  used: set[str] = set()
  for name, shape in named_leaves(abstract).items():
    theirs, transposed = LLAMA_NAMES[name]
    layers = range(config.depth) if "{}" in theirs else [None]
    names = [theirs.format(layer) for layer in layers]
    used.update(names)
    missing = [f"no tensor {n}" for n in names if n not in tensors]
    if missing:
      problems += missing
      continue
    parts = [np.asarray(tensors[n]) for n in names]
    if transposed:
      parts = [np.swapaxes(part, -1, -2) for part in parts]
    if theirs in _VOCABULARY:
      parts = [_padded(part, config, transposed) for part in parts]
    expected = shape.shape[1:] if "{}" in theirs else shape.shape
    wrong = [
      f"tensor {n} has shape {list(tensors[n].shape)}, which does not fit"
      for n, part in zip(names, parts)
      if part.shape != expected
    ]
    wrong += [
      f"tensor {n} is {tensors[n].dtype}, which float32 does not hold exactly"
      for n in names
      if str(tensors[n].dtype) not in _EXACT
    ]
    problems += wrong
    if not wrong:
      stacked = np.stack(parts) if "{}" in theirs else parts[0]
      leaves[name] = stacked.astype(np.float32)
  problems += [f"tensor {n} is not used" for n in tensors if n not in used]
  check(sorted(problems))
  return tree_of_leaves(leaves)


def _padded(
  part: np.ndarray, config: DecoderConfig, transposed: bool
) -> np.ndarray:
  axis = 1 if transposed else 0
  if part.shape[axis] != config.vocab_size:
    return part
  widths = [(0, 0), (0, 0)]
  widths[axis] = (0, config.padded_vocab_size - config.vocab_size)
  return np.pad(part, widths)


def to_config(config: DecoderConfig) -> dict[str, Any]:
  """The config.json of a LlamaForCausalLM."""
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.depth,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "intermediate_size": config.mlp_width,
    "rope_theta": config.rope_theta,
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tied,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "float32",
  }


def from_config(value: Mapping[str, Any]) -> DecoderConfig:
  """Our config from a config.json.

  Raises:
    InputError: the model is not a Llama that this decoder computes exactly.
  """
  if not isinstance(value, dict):
    raise InputError("config.json is not a JSON object")
  value = {key: item for key, item in value.items() if item is not None}
  problems = [
    f"config.json: {key} is {value.get(key)!r}, only {only!r} is supported"
    for key, only in (
      ("model_type", "llama"),
      ("hidden_act", "silu"),
      ("attention_bias", False),
      ("mlp_bias", False),
      ("rope_scaling", None),
    )
    if value.get(key, only) != only
  ]
  needed = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
  )
  problems += [
    f"config.json has no {key}" for key in needed if key not in value
  ]
  check(problems)
  rope = value.get("rope_parameters") or {}
  heads = value["num_attention_heads"]
  head_size = value.get("head_dim", value["hidden_size"] // heads)
  if head_size * heads != value["hidden_size"]:
    raise InputError(f"config.json: head_dim {head_size} is not supported")
  if rope.get("rope_type", "default") != "default":
    raise InputError(f"config.json: rope_parameters {rope} is not supported")
  return DecoderConfig(
    vocab_size=value["vocab_size"],
    width=value["hidden_size"],
    depth=value["num_hidden_layers"],
    num_heads=heads,
    num_kv_heads=value.get("num_key_value_heads", heads),
    mlp_width=value["intermediate_size"],
    rope_theta=rope.get("rope_theta", value.get("rope_theta", 10_000.0)),
    norm_eps=value.get("rms_norm_eps", 1e-6),
    tied=value.get("tie_word_embeddings", False),
  )


def save_directory(
  path: epath.PathLike,
  params: Params,
  config: DecoderConfig,
  tokenizer: str,
  *,
  overwrite: bool = False,
) -> None:
  """Writes config.json, model.safetensors and, if any, tokenizer.json.

  Raises:
    InputError: `path` exists without `overwrite`, or cannot be written.
  """
  check_output(path, overwrite=overwrite)
  with replace_directory(path) as temporary:
    temporary.mkdir()
    write_json(temporary / "config.json", to_config(config))
    save_file(to_tensors(params, config), temporary / _WEIGHTS)
    if tokenizer:
      write_text(temporary / "tokenizer.json", tokenizer)


def load_directory(
  path: epath.PathLike,
) -> tuple[Params, DecoderConfig, str]:
  """Parameters, config and tokenizer.json ("" without) of a directory.

  Raises:
    InputError: a file is missing or damaged, or the model is another kind.
  """
  path = epath.Path(path)
  read: Callable[[str], str] = lambda name: (path / name).read_text()
  if (path / f"{_WEIGHTS}.index.json").exists():
    raise InputError(f"{path}: sharded safetensors are not supported")
  try:
    config = from_config(json.loads(read("config.json")))
    tensors = load_file(path / _WEIGHTS)
  except (OSError, SafetensorError) as error:
    raise InputError(f"{path} cannot be read: {error}") from error
  except InputError as error:
    raise InputError([f"{path}: {p}" for p in error.problems]) from error
  except ValueError as error:
    raise InputError(f"{path}: config.json is damaged: {error}") from error
  if config.tied and "lm_head.weight" in tensors:
    head = tensors.pop("lm_head.weight")
    embedding = tensors.get("model.embed_tokens.weight", head)
    if not np.array_equal(head, embedding):
      raise InputError(
        f"{path}: the head is said to be tied, but lm_head.weight is not "
        "model.embed_tokens.weight"
      )
  tokenizer = path / "tokenizer.json"
  return (
    from_tensors(tensors, config),
    config,
    tokenizer.read_text() if tokenizer.exists() else "",
  )
