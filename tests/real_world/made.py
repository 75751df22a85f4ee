"""Makes tiny Hugging Face directories, and types the commands that read them.

Whatever a tool may write is an argument: names, dtypes, files beside.
"""

import json

import ml_dtypes
import numpy as np

from jaxmerge import merge
from jaxmerge.cli import runner
from jaxmerge.formats.safetensors import write_file
from jaxmerge.huggingface.shards import open_tensors
from tests.helpers import ROOT
from tests.merging.fixtures import specs_of

BF16, F8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
# Two names of a model that no library knows.
SHAPES = {"proj.weight": (4, 3), "norm.weight": (5,)}


def noise(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def plain(seed=0, dtype=np.float32):
  """Tensors that every input of a merge may have."""
  return {n: noise(*s, seed=seed, dtype=dtype) for n, s in SHAPES.items()}


def directory(path, tensors, config=None, *, files=None, names=None):
  """A directory of these tensors, in their order.

  Args:
    path: is made.
    tensors: by name; of any dtype that safetensors can hold.
    config: what config.json says beside a model_type; False: there is none.
    files: what lies beside, by name: bytes, text, or what becomes JSON.
    names: the name of the one file of tensors; "" for none.
  """
  path.mkdir(parents=True)
  beside = dict(files or {})
  if config is not False:
    beside["config.json"] = {"model_type": "anything", **(config or {})}
  for name, content in beside.items():
    if not isinstance(content, bytes | str):
      content = json.dumps(content)
    if isinstance(content, str):
      content = content.encode()
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(content)
  if names != "":
    file = path / (names or "model.safetensors")
    write_file(file, specs_of(tensors), iter(tensors.values()))
  return path


LLAMA = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 12,
  "hidden_size": 8,
  "intermediate_size": 6,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "max_position_embeddings": 16,
  "rms_norm_eps": 1e-6,
  "rope_theta": 1e4,
  "hidden_act": "silu",
  "tie_word_embeddings": False,
}


def llama_tensors(seed=0, dtype=np.float32, layers=2):
  """The tensors of LLAMA, by the names of transformers."""
  shapes = {"model.embed_tokens.weight": (12, 8)}
  for i in range(layers):
    shapes |= {
      f"model.layers.{i}.{name}.weight": shape
      for name, shape in (
        ("input_layernorm", (8,)),
        ("post_attention_layernorm", (8,)),
        ("self_attn.q_proj", (8, 8)),
        ("self_attn.k_proj", (4, 8)),
        ("self_attn.v_proj", (4, 8)),
        ("self_attn.o_proj", (8, 8)),
        ("mlp.gate_proj", (6, 8)),
        ("mlp.up_proj", (6, 8)),
        ("mlp.down_proj", (8, 6)),
      )
    }
  shapes |= {"model.norm.weight": (8,), "lm_head.weight": (12, 8)}
  return {
    name: noise(*shape, seed=seed * 1000 + i, dtype=dtype)
    for i, (name, shape) in enumerate(shapes.items())
  }


def llama(path, seed=0, *, dtype=np.float32, tensors=None, **config):
  """A directory of LLAMA; `config` changes its config.json."""
  tensors = llama_tensors(seed, dtype) if tensors is None else tensors
  return directory(path, tensors, {**LLAMA, **config})


def merge_words(inputs, output, *words):
  """What a user types behind `python -m jaxmerge.merge`."""
  typed = ",".join(map(str, inputs))
  words = [f"--inputs={typed}", f"--output={output}", *map(str, words)]
  return [f"--config={ROOT / 'configs/merge/uniform.py'}", *words]


def merged(inputs, output, *words):
  """Merges unrelated directories; the tensors of the output."""
  argv = merge_words(inputs, output, "--allow_unrelated", *words)
  code = runner.run("merge", lambda: merge.main(argv))
  assert code == 0
  return {name: np.asarray(x) for name, x in open_tensors(output).items()}


def refused(capsys, inputs, output, *words):
  """The problems that a merge is refused for; it leaves nothing behind."""
  capsys.readouterr()
  argv = merge_words(inputs, output, "--allow_unrelated", *words)
  code = runner.run("merge", lambda: merge.main(argv))
  first, *rest = capsys.readouterr().err.splitlines()
  assert code == 2
  assert first == "jaxmerge.merge: error:"
  assert not output.exists()
  return [line.strip() for line in rest]
