"""Groups by patterns over the names of the directory that a model came from."""

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import jaxmerge
from jaxmerge.checkpoints.model_inputs import open_models
from jaxmerge.errors import InputError
from jaxmerge.evaluation.domain import groups_of_models
from jaxmerge.model.decoder import Decoder
from jaxmerge.parallel.rules import named_leaves
from tests.helpers import NEOX, decoder

LAYERS = 3
MODELS = {
  "llama": decoder(num_hidden_layers=LAYERS),
  "neox": decoder(
    num_hidden_layers=LAYERS,
    **{
      name: getattr(NEOX, name)
      for name in (
        "num_key_value_heads",
        "norm",
        "parallel_residual",
        "attention_bias",
        "mlp_bias",
        "gated_mlp",
        "activation",
        "rotary_fraction",
      )
    },
  ),
}
# A pattern over their names, and ours of what it holds, in the layer 1.
HELD = {
  "llama": (
    "model.layers.1.post_attention*,*.k_proj.weight",
    ["layers/mlp_norm/scale"],
  ),
  "neox": (
    "*.1.attention.query_key_value.*,*.attention.*",
    [
      f"layers/attention/{name}/{part}"
      for name in ("query", "key", "value")
      for part in ("kernel", "bias")
    ],
  ),
}


def _saved(folder, model, form):
  paths = []
  for seed in (1, 2):
    paths.append(str(folder / f"{form}{seed}"))
    jaxmerge.save_model(
      Decoder(MODELS[model], nnx.Rngs(seed)), paths[-1], format=form
    )
  return paths


@pytest.mark.parametrize("model", MODELS)
def test_patterns_are_over_the_names_of_the_directories(tmp_path, model):
  text, ours = HELD[model]
  opened = open_models(_saved(tmp_path, model, "hf"))
  groups, coarser = groups_of_models(opened, text)
  assert groups.names_G == (*text.split(","), "rest")
  assert coarser == {"shared": (0, 0, 0), text: (0, 1, 2)}
  of_leaf = named_leaves(groups.of_leaf)
  first = {
    name: np.flatnonzero(np.ravel(index) == 0).tolist()
    for name, index in of_leaf.items()
    if (index == 0).any()
  }
  assert first == {name: [1] for name in ours}
  key = of_leaf["layers/attention/key/kernel"].tolist()
  assert key == ([1, 1, 1] if model == "llama" else [1, 0, 1])
  with pytest.raises(InputError, match=r"'layers\.0.*matches no parameter"):
    groups_of_models(opened, "layers.0.*")


def test_among_step_directories_they_are_over_ours(tmp_path):
  theirs, own = (_saved(tmp_path, "llama", form) for form in ("hf", "orbax"))
  for inputs in (own, [theirs[0], own[1]]):
    groups, _ = groups_of_models(open_models(inputs), "layers.0.*")
    assert groups.names_G == ("layers.0.*", "rest")


def test_names_behind_a_prefix_are_those_that_lie_there(tmp_path):
  [path, _] = _saved(tmp_path, "llama", "hf")
  file = tmp_path / "hf1/model.safetensors"
  tensors = load_file(file)
  save_file({f"module.{name}": x for name, x in tensors.items()}, file)
  groups, _ = groups_of_models(open_models([path]), "module.model.layers.*")
  assert groups.names_G == ("module.model.layers.*", "rest")
