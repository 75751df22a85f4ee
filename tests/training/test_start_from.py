"""A run may start from any decoder of its own kind, imported ones too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmerge.checkpoints import models
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.data.tokenizers.hugging_face import train_tokenizer
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.training.start import start_problems
from jaxmerge.training.trainer import Trainer
from tests.helpers import NEOX, random_params


def trainer(config):
  mesh = make_mesh(data=-1, fsdp=1, tensor=1)
  return Trainer.build(config, mesh, optax.adamw(1e-3), lambda step: 1e-3)


def saved(path, dtype=jnp.float32):
  params = random_params(NEOX)
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  model = models.SavedModel(params, NEOX, "", None)
  models.save(model, path, "orbax", overwrite=False)
  return params, open_inputs([str(path)])[0]


def test_narrow_parameters_are_widened(tmp_path):
  params, checkpoint = saved(tmp_path / "m", jnp.bfloat16)
  state = trainer(NEOX).start_from(checkpoint)

  def check(start, narrow):
    assert start.dtype == jnp.float32
    np.testing.assert_array_equal(start, narrow.astype(jnp.float32))

  jax.tree.map(check, state.params, params)


@pytest.mark.parametrize(
  "options",
  [
    {"activation": "relu"},
    {"rotary_fraction": 1.0},
    {"tie_word_embeddings": True},
  ],
)
def test_a_decoder_of_another_kind_is_refused(tmp_path, options):
  _, checkpoint = saved(tmp_path / "m")
  other = dataclasses.replace(NEOX, **options)
  [key] = options
  [problem] = start_problems(checkpoint, other)
  assert f"model.{key} is" in problem
  how = dataclasses.replace(NEOX, dtype="bfloat16")
  assert not start_problems(checkpoint, how)
  trainer(how).start_from(checkpoint)


def test_the_size_of_a_vocabulary_counts_once_it_is_known(tmp_path):
  _, checkpoint = saved(tmp_path / "m")
  other = dataclasses.replace(NEOX, vocab_size=NEOX.vocab_size + 1)
  assert not start_problems(checkpoint, other)
  tokenizer = train_tokenizer(["a text"], vocab_size=257)
  [problem] = start_problems(checkpoint, other, tokenizer)
  assert "model.vocab_size is" in problem
