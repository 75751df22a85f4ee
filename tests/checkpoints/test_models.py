import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import jaxmerge
from jaxmerge.checkpoints import models
from jaxmerge.errors import InputError
from jaxmerge.model.decoder import Decoder
from tests.helpers import decoder

TOKENS = np.arange(12, dtype=np.int32).reshape(2, 6)


@pytest.fixture(params=[True, False], ids=["tie_word_embeddings", "untied"])
def model(request):
  config = decoder(tie_word_embeddings=request.param)
  return Decoder(config, nnx.Rngs(0))


@pytest.mark.parametrize("format", ["hf", "orbax"])
def test_a_model_comes_back_as_it_was(model, tmp_path, format):
  jaxmerge.save_model(model, tmp_path / "m", format=format)
  again = jaxmerge.load_model(tmp_path / "m")
  np.testing.assert_array_equal(model(TOKENS), again(TOKENS))
  assert again(TOKENS).shape == (2, 6, 50)


def test_their_tensors_are_named_and_shaped_as_theirs(model, tmp_path):
  jaxmerge.save_model(model, tmp_path / "m", format="hf")
  tensors = load_file(tmp_path / "m/model.safetensors")
  assert tensors["model.embed_tokens.weight"].shape == (50, 16)
  assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (8, 16)
  assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (16, 24)
  assert ("lm_head.weight" in tensors) != model.config.tie_word_embeddings
  config = json.loads((tmp_path / "m/config.json").read_text())
  assert config["num_key_value_heads"] == 2


def test_damage_is_listed(model, tmp_path):
  jaxmerge.save_model(model, tmp_path / "m", format="hf")
  file = tmp_path / "m/model.safetensors"
  tensors = load_file(file)
  tensors.pop("model.norm.weight")
  tensors["extra"] = np.zeros(2, np.float32)
  tensors["model.embed_tokens.weight"] = np.zeros((3, 16), np.float32)
  save_file(tensors, file)
  with pytest.raises(InputError) as error:
    jaxmerge.load_model(tmp_path / "m")
  assert len(error.value.problems) == 3
  file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(InputError, match="cannot be read"):
    jaxmerge.load_model(tmp_path / "m")


def test_another_architecture_is_refused(model, tmp_path):
  jaxmerge.save_model(model, tmp_path / "m", format="hf")
  file = tmp_path / "m/config.json"
  config = json.loads(file.read_text())
  file.write_text(json.dumps({**config, "model_type": "gpt2"}))
  with pytest.raises(InputError, match="gpt2"):
    jaxmerge.load_model(tmp_path / "m")


def test_an_existing_path_is_never_replaced(model, tmp_path):
  (tmp_path / "m").mkdir()
  for format in models.FORMATS:
    with pytest.raises(InputError, match="exists"):
      jaxmerge.save_model(model, tmp_path / "m", format=format)
  with pytest.raises(InputError, match="format"):
    jaxmerge.save_model(model, tmp_path / "n", format="gguf")
  assert not (tmp_path / "n").exists()


def test_a_run_survives_the_way_there_and_back(tiny_run, tmp_path):
  from jaxmerge.convert import convert

  convert(f"{tiny_run}@8", tmp_path / "hf", "hf")
  convert(str(tmp_path / "hf"), tmp_path / "back", "orbax")
  first = models.load(tiny_run / "checkpoints/8")
  back = models.load(tmp_path / "back")
  assert back.tokenizer == first.tokenizer
  vocab = first.config.vocab_size
  for tree in (first.params, back.params):
    tree["embed"]["embedding"] = tree["embed"]["embedding"][:vocab]
  jax.tree.map(np.testing.assert_array_equal, first.params, back.params)
