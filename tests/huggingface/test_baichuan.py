"""Baichuan2 against a forward pass written from its description.

transformers has no class of it. RMSNorm, W_pack split into queries, keys and
values, RoPE and MLP as in Llama, and a head whose rows have unit length
(2309.10305, section 2).
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmerge
from jaxmerge.errors import InputError
from tests.parity.numpy_tensors import tensor

WIDTH, HEADS, DEPTH, HIDDEN, VOCAB, EPS = 32, 4, 2, 40, 57, 1e-6
TOKENS = np.random.default_rng(0).integers(0, VOCAB, size=(2, 12))
CONFIG = {
  "architectures": ["BaichuanForCausalLM"],
  "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
  "model_type": "baichuan",
  "hidden_act": "silu",
  "hidden_size": WIDTH,
  "intermediate_size": HIDDEN,
  "max_position_embeddings": 4096,
  "model_max_length": 4096,
  "num_attention_heads": HEADS,
  "num_hidden_layers": DEPTH,
  "rms_norm_eps": EPS,
  "tie_word_embeddings": False,
  "vocab_size": VOCAB,
  "z_loss_weight": 0,
}
LAYER = {
  "input_layernorm.weight": (WIDTH,),
  "self_attn.W_pack.weight": (3 * WIDTH, WIDTH),
  "self_attn.o_proj.weight": (WIDTH, WIDTH),
  "post_attention_layernorm.weight": (WIDTH,),
  "mlp.gate_proj.weight": (HIDDEN, WIDTH),
  "mlp.up_proj.weight": (HIDDEN, WIDTH),
  "mlp.down_proj.weight": (WIDTH, HIDDEN),
}
SHAPES = {
  "model.embed_tokens.weight": (VOCAB, WIDTH),
  **{
    f"model.layers.{i}.{n}": s for i in range(DEPTH) for n, s in LAYER.items()
  },
  "model.norm.weight": (WIDTH,),
  "lm_head.weight": (VOCAB, WIDTH),
}
TENSORS = {name: tensor(name, shape) for name, shape in SHAPES.items()}


def norm(x, scale):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * scale


def rotate(x_BxLxHxS):
  half = x_BxLxHxS.shape[-1] // 2
  angles = np.arange(x_BxLxHxS.shape[1])[:, None] / 10_000.0 ** (
    np.arange(half) / half
  )
  turn = np.exp(1j * angles)[:, None]
  turned = (x_BxLxHxS[..., :half] + 1j * x_BxLxHxS[..., half:]) * turn
  return np.concatenate([turned.real, turned.imag], axis=-1)


def attend(x, w):
  packed = x @ w["self_attn.W_pack.weight"].T
  heads = (*x.shape[:2], HEADS, WIDTH // HEADS)
  q, k, v = (part.reshape(heads) for part in np.split(packed, 3, axis=-1))
  scores = np.einsum("blhs,bmhs->bhlm", rotate(q), rotate(k))
  scores /= np.sqrt(WIDTH // HEADS)
  scores += np.triu(np.full(scores.shape[-2:], -np.inf), 1)
  p = np.exp(scores - scores.max(-1, keepdims=True))
  mixed = np.einsum("bhlm,bmhs->blhs", p / p.sum(-1, keepdims=True), v)
  return mixed.reshape(x.shape) @ w["self_attn.o_proj.weight"].T


def reference_logits():
  weights = {n: a.astype(np.float64) for n, a in TENSORS.items()}
  x = weights["model.embed_tokens.weight"][TOKENS]
  for i in range(DEPTH):
    w = {n: weights[f"model.layers.{i}.{n}"] for n in LAYER}
    x = x + attend(norm(x, w["input_layernorm.weight"]), w)
    y = norm(x, w["post_attention_layernorm.weight"])
    gate = y @ w["mlp.gate_proj.weight"].T
    hidden = gate / (1 + np.exp(-gate)) * (y @ w["mlp.up_proj.weight"].T)
    x = x + hidden @ w["mlp.down_proj.weight"].T
  head = weights["lm_head.weight"]
  head = head / np.linalg.norm(head, axis=1, keepdims=True)
  return norm(x, weights["model.norm.weight"]) @ head.T


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "theirs"
  path.mkdir()
  (path / "config.json").write_text(json.dumps(CONFIG))
  (path / "modeling_baichuan.py").write_text("# theirs\n")
  (path / "tokenizer.model").write_bytes(bytes(range(256)))
  save_file(TENSORS, path / "model.safetensors")
  return path


def test_logits_are_those_of_the_description(path):
  logits = jaxmerge.load_model(path)(TOKENS.astype(np.int32))
  error = np.abs(logits - reference_logits()).max()
  print(f"baichuan: max |dlogit| {error:.2e}")
  assert error < 1e-5


def test_it_goes_back_with_its_code_and_its_tokenizer(path, tmp_path):
  from jaxmerge.convert import convert

  convert(str(path), tmp_path / "orbax", "orbax")
  convert(str(tmp_path / "orbax"), tmp_path / "back", "hf")
  back = load_file(tmp_path / "back/model.safetensors")
  assert back.keys() == TENSORS.keys()
  for name, array in TENSORS.items():
    np.testing.assert_array_equal(back[name], array)
  for name in ("config.json", "modeling_baichuan.py", "tokenizer.model"):
    assert (tmp_path / "back" / name).read_bytes() == (path / name).read_bytes()
  card = (tmp_path / "back/README.md").read_text()
  assert "trust_remote_code=True" in card


def test_gradients_are_finite_where_the_vocabulary_is_padded(path):
  """The length of a row of zeros has no gradient of its own."""
  import jax
  from flax import nnx

  from jaxmerge.checkpoints import models
  from jaxmerge.model.decoder import abstract_decoder
  from jaxmerge.model.loss import token_losses

  saved = models.load(path)
  assert saved.config.padded_vocab_size > VOCAB
  graph, _ = abstract_decoder(saved.config)
  assert isinstance(graph, nnx.GraphDef)
  tokens = TOKENS.astype(np.int32)
  loss = lambda p: token_losses(graph, p, tokens).mean()
  gradient = jax.jit(jax.grad(loss))(saved.params)
  for leaf in jax.tree.leaves(gradient):
    assert np.isfinite(leaf).all()


def test_the_13b_is_refused(path):
  config = {k: v for k, v in CONFIG.items() if k != "max_position_embeddings"}
  (path / "config.json").write_text(json.dumps(config))
  with pytest.raises(InputError, match="ALiBi"):
    jaxmerge.load_model(path)
