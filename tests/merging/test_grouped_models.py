"""Merges with weights for each group, of models in either format."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jaxmerge
from jaxmerge.checkpoints import store
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.merging.groups import groups_of
from jaxmerge.merging.resident import IN_STORAGE, open_trees
from jaxmerge.model.decoder import Decoder
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import replicated
from tests.helpers import NEOX, decoder
from tests.merging import fixtures
from tests.merging.fixtures import run_rows

ROWS = [[0.3, 0.7], [1.0, 0.0], [-0.5, 1.5], [0.2, 0.8]]
MODELS = {
  "llama": decoder(num_hidden_layers=3),
  "tied": decoder(num_hidden_layers=3, tie_word_embeddings=True),
  "olmo2": decoder(
    num_hidden_layers=3, query_key_norm="projection", norm_after=True
  ),
  "neox": decoder(
    num_hidden_layers=3,
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
TEXTS = {
  "2": (4, {}),
  "attention_mlp": (8, {}),
  "": (2, {"interpolate": True}),
}


@pytest.fixture(scope="module", params=MODELS)
def both(request, tmp_path_factory):
  """Two models, as step directories and as Hugging Face directories."""
  folder = tmp_path_factory.mktemp(request.param)
  paths = {"hf": [], "orbax": []}
  for seed in (1, 2):
    model = Decoder(MODELS[request.param], nnx.Rngs(seed))
    for form, found in paths.items():
      found.append(str(folder / f"{form}{seed}"))
      jaxmerge.save_model(model, found[-1], format=form)
  return paths


@pytest.mark.parametrize("text", TEXTS)
def test_a_known_family_is_merged_alike_in_both_formats(both, tmp_path, text):
  count, changes = TEXTS[text]
  rows = np.random.default_rng(0).uniform(0.1, 1, size=(count, 2)).tolist()
  found = {}
  for form, paths in both.items():
    out = run_rows(paths, tmp_path / form, rows, layer_groups=text, **changes)
    model = jaxmerge.load_model(out)
    size = model.config.vocab_size
    state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    found[form] = {
      jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves
    }
    for name in ("['embed']['embedding']", "['head']['kernel']"):
      if name in found[form]:  # rows of padding are not in both
        table = found[form][name]
        axis = table.shape.index(model.config.padded_vocab_size)
        found[form][name] = np.take(table, np.arange(size), axis)
  fixtures.assert_same_bytes(found["hf"], found["orbax"])
  known = [
    json.loads((tmp_path / "hf/jaxmerge.json").read_text())["provenance"],
    read_metadata(tmp_path / "orbax").provenance,
  ]
  assert known[0]["groups"] == known[1]["groups"]


def test_patterns_over_names_of_ours(tiny_run, tmp_path):
  inputs = [f"{tiny_run}@{step}" for step in (8, 12)]
  text = "*.attention*,layers.1.*"
  out = run_rows(inputs, tmp_path / "out", ROWS[:3], layer_groups=text)
  one, two = (restore_params(tiny_run / f"checkpoints/{s}") for s in (8, 12))
  merged = restore_params(out)

  def mean(path, rows_L):
    leaves = [tree["layers"] for tree in (one, two, merged)]
    for key in path:
      leaves = [leaf[key] for leaf in leaves]
    for layer, (a, b) in enumerate(rows_L):
      x, y, found = (np.float64(leaf[layer]) for leaf in leaves)
      np.testing.assert_allclose(found, a * x + b * y, atol=1e-6)

  mean(("attention", "query", "kernel"), [ROWS[0]] * 2)
  mean(("attention_norm", "scale"), [ROWS[0]] * 2)
  mean(("mlp", "up", "kernel"), [ROWS[2], ROWS[1]])


def test_layers_that_were_stored_together(tmp_path, monkeypatch):
  """As earlier versions did, and others that write Orbax do."""
  monkeypatch.setattr(
    store,
    "_in_parts",
    lambda tree: jax.tree.map(lambda _: ocp.SaveArgs(), tree),
  )
  trees = [fixtures.stacked(seed, depth=4) for seed in (1, 2)]
  inputs = [
    fixtures.step_directory(tmp_path / str(i), tree)
    for i, tree in enumerate(trees)
  ]
  text = "layers.[02].*,layers.1.*,*.3.*"
  out = run_rows(inputs, tmp_path / "out", ROWS, layer_groups=text)
  where = jax.tree.map(lambda _: replicated(make_mesh()), trees[0])
  opened = open_trees(open_inputs(list(map(str, inputs))), where, IN_STORAGE)
  of_search = opened.average(ROWS, groups_of(trees[0], text))
  for merged in (restore_params(out), of_search):
    kernels = [tree["layers"]["kernel"] for tree in (*trees, merged)]
    rows_L = (ROWS[0], ROWS[1], ROWS[0], ROWS[2])
    for (a, b), *layers in zip(rows_L, *map(np.float64, kernels)):
      one, two, found = layers
      np.testing.assert_allclose(found, a * one + b * two, atol=1e-6)
