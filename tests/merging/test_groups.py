"""Groups of parameters, and merges with weights for each."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution

from jaxmerge.errors import InputError
from jaxmerge.evaluation.objective import Domain
from jaxmerge.formats.lazy_tensors import tree_of_leaves
from jaxmerge.merging import average
from jaxmerge.merging.group_texts import layer_groups_problems
from jaxmerge.merging.groups import Groups, coarsenings, groups_of, one_group
from jaxmerge.model.shapes import param_shapes
from jaxmerge.parallel.rules import named_leaves
from jaxmerge.simplex.bounds import Bounds
from tests.helpers import DECODER


def _tree(seed=0, depth=5):
  rng = np.random.default_rng(seed)
  return {
    "embed": {"embedding": rng.normal(size=(4, 2)).astype(np.float32)},
    "layers": {"mlp": {"kernel": rng.normal(size=(depth, 2, 3))}},
    "final_norm": {"scale": rng.normal(size=3).astype(np.float32)},
  }


def _float32(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def test_bands_cover_the_depth_in_order():
  groups = groups_of(_tree(), "2")
  assert groups.names_G == ("embeddings", "band_0", "band_1", "head")
  band_L = groups.of_leaf["layers"]["mlp"]["kernel"]
  assert band_L.tolist() == [1, 1, 1, 2, 2]
  assert int(groups.of_leaf["embed"]["embedding"]) == 0
  assert int(groups.of_leaf["final_norm"]["scale"]) == 3
  np.testing.assert_allclose(groups.shares_G, np.array([8, 18, 12, 3]) / 41)


def test_bands_that_the_model_has_not():
  with pytest.raises(InputError, match="5 layers: from 1 to 5 bands, not 6"):
    groups_of(_tree(), "6")
  with pytest.raises(InputError, match="must be empty"):
    groups_of(_tree(), "0")


def test_a_parameter_of_no_group_is_named():
  with pytest.raises(InputError, match="'router/kernel'"):
    groups_of({**_tree(), "router": {"kernel": np.zeros(2)}}, "1")


def test_grouped_average_by_hand():
  trees = [_float32(_tree(seed)) for seed in range(3)]
  groups = groups_of(trees[0], "5")
  rng = np.random.default_rng(0)
  weights_GxK = rng.dirichlet(np.ones(3), 7)
  found = average.grouped_average(trees, weights_GxK.tolist(), groups)
  layers = [tree["layers"]["mlp"]["kernel"] for tree in trees]
  for depth in range(5):
    expected = sum(
      w * layer[depth] for w, layer in zip(weights_GxK[1 + depth], layers)
    )
    np.testing.assert_allclose(
      found["layers"]["mlp"]["kernel"][depth], expected, rtol=1e-5, atol=1e-6
    )
  tables = [tree["embed"]["embedding"] for tree in trees]
  np.testing.assert_allclose(
    found["embed"]["embedding"],
    sum(w * table for w, table in zip(weights_GxK[0], tables)),
    rtol=1e-5,
    atol=1e-6,
  )


def test_equal_groups_are_the_plain_average():
  trees = [_float32(_tree(seed)) for seed in range(2)]
  groups = groups_of(trees[0], "2")
  found = average.grouped_average(trees, [[0.3, 0.7]] * 4, groups)
  plain = average.weighted_average(trees, [0.3, 0.7])
  jax.tree.map(np.testing.assert_array_equal, found, plain)
  alone = average.grouped_average(trees, [[0.0, 1.0]] * 4, groups)
  assert alone is trees[1]


def test_a_tree_without_a_weight_anywhere_is_not_touched():
  trees = [_float32(_tree(seed)) for seed in range(3)]
  trees[1] = jax.tree.map(lambda x: x * jnp.nan, trees[1])
  groups = groups_of(trees[0], "1")
  rows = [[1.0, 0.0, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 1.0]]
  found = average.grouped_average(trees, rows, groups)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_a_weight_of_zero_in_one_group_keeps_nan_out_of_it():
  trees = [_float32(_tree(seed)) for seed in range(2)]
  table = trees[0]["embed"]["embedding"] * jnp.nan
  trees[0] = {**trees[0], "embed": {"embedding": table}}
  rows = [[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]]
  groups = groups_of(trees[0], "1")
  found = average.grouped_average(trees, rows, groups)
  np.testing.assert_array_equal(
    found["embed"]["embedding"], trees[1]["embed"]["embedding"]
  )
  assert np.isfinite(found["layers"]["mlp"]["kernel"]).all()


def test_negative_weights_of_groups():
  trees = [_float32(_tree(seed)) for seed in range(3)]
  trees[1] = jax.tree.map(lambda x: x * jnp.nan, trees[1])
  groups = groups_of(trees[0], "1")
  rows = [[-1.0, 0.0, 2.0], [-0.25, 0.0, 1.25], [0.0, 0.0, 1.0]]
  found = average.grouped_average(trees, rows, groups)
  first, last = (np.float64(trees[k]["embed"]["embedding"]) for k in (0, 2))
  np.testing.assert_allclose(
    found["embed"]["embedding"], 2 * last - first, rtol=1e-5, atol=1e-6
  )
  kernels = [np.float64(trees[k]["layers"]["mlp"]["kernel"]) for k in (0, 2)]
  np.testing.assert_allclose(
    found["layers"]["mlp"]["kernel"],
    1.25 * kernels[1] - 0.25 * kernels[0],
    rtol=1e-5,
    atol=1e-6,
  )


def test_a_row_for_each_group():
  trees = [_float32(_tree(seed)) for seed in range(2)]
  with pytest.raises(InputError, match="4 groups but 1 rows"):
    average.grouped_average(trees, [[0.5, 0.5]], groups_of(trees[0], "2"))
  assert isinstance(one_group(trees[0]), Groups)


CONFIG = dataclasses.replace(DECODER, num_hidden_layers=6)
SHAPES = {
  name: jax.ShapeDtypeStruct(shape, np.float32)
  for name, shape in param_shapes(CONFIG).items()
}
PARAMS = tree_of_leaves(SHAPES)


def _names(groups):
  """The group of each parameter by its dotted name, each layer spelled out."""
  found = {}
  for name, index in named_leaves(groups.of_leaf).items():
    if np.ndim(index) == 0:
      found[name.replace("/", ".")] = groups.names_G[int(index)]
    else:
      first, _, rest = name.replace("/", ".").partition(".")
      for layer, g in enumerate(index.tolist()):
        found[f"{first}.{layer}.{rest}"] = groups.names_G[g]
  return found


def test_attention_and_mlp_hold_their_norms():
  groups = groups_of(PARAMS, "attention_mlp")
  assert groups.names_G == (
    "embeddings",
    *(f"layer_{i}/{part}" for i in range(6) for part in ("attention", "mlp")),
    "head",
  )
  found = _names(groups)
  assert found["embed.embedding"] == "embeddings"
  assert found["layers.3.attention.query.kernel"] == "layer_3/attention"
  assert found["layers.3.attention_norm.scale"] == "layer_3/attention"
  assert found["layers.5.mlp.down.kernel"] == "layer_5/mlp"
  assert found["layers.5.mlp_norm.scale"] == "layer_5/mlp"
  assert found["final_norm.scale"] == found["head.kernel"] == "head"
  layers = _names(groups_of(PARAMS, "layer"))
  assert layers["layers.3.mlp.up.kernel"] == "layer_3"
  assert groups_of(PARAMS, "layer").names_G == (
    *("embeddings", *(f"layer_{i}" for i in range(6)), "head"),
  )


@pytest.mark.parametrize(
  "text", ["", "4", "layer", "attention_mlp", "embed.*, *.mlp.*,layers.[0-2]*"]
)
def test_shares_are_counted(text):
  groups = groups_of(PARAMS, text)
  sizes = dict.fromkeys(groups.names_G, 0.0)
  for name, group in _names(groups).items() if text else ():
    parts = [p for p in name.split(".") if not p.isdecimal()]
    shape = SHAPES["/".join(parts)].shape
    sizes[group] += math.prod(shape[1:] if parts[0] == "layers" else shape)
  expected = np.array([*sizes.values()]) if text else np.ones(1)
  np.testing.assert_allclose(groups.shares_G, expected / expected.sum())


def test_the_first_pattern_that_matches_decides():
  text = "embed.*, layers.[01].attention.*,layers.*.attention*,*.mlp.*"
  groups = groups_of(PARAMS, text)
  first, second, third, fourth = text.replace(" ", "").split(",")
  assert groups.names_G == (first, second, third, fourth, "rest")
  found = _names(groups)
  assert found["embed.embedding"] == first
  assert found["layers.1.attention.query.kernel"] == second
  assert found["layers.1.attention_norm.scale"] == third
  assert found["layers.2.attention.query.kernel"] == third
  assert found["layers.0.mlp.up.kernel"] == fourth
  assert found["layers.0.mlp_norm.scale"] == "rest"
  assert groups_of(PARAMS, "layers.*,*").names_G == ("layers.*", "*")


def test_patterns_that_match_nothing_are_named():
  with pytest.raises(InputError) as error:
    groups_of(PARAMS, "layers.*,layers.7.*,nobody,*")
  [third, second] = sorted(error.value.problems)
  assert second.startswith("layer_groups: 'nobody' matches no parameter; ")
  assert "embed.embedding" in second
  assert third.startswith(
    "layer_groups: 'layers.7.*' matches no parameter; there are"
  )
  with pytest.raises(InputError, match=r"'layers\.1\.\*' .* none before it"):
    groups_of(PARAMS, "layers.*,layers.1.*")


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("-1", "must be empty, a number of bands"),
    ("0", "must be empty, a number of bands"),
    ("4,", "must be empty, a number of bands"),
    ("a b", "must be empty, a number of bands"),
    ("a.*,b,a.*", r"has 'a\.\*' twice"),
    ("a.*,rest", "'rest' is the group of what no pattern matches"),
  ],
)
def test_texts_that_say_nothing(text, words):
  [found] = layer_groups_problems(text, "config.")
  assert found.startswith("config.layer_groups")
  assert re.search(words, found)


@pytest.mark.parametrize(
  ("text", "names"),
  [
    ("", ["shared"]),
    ("layer", ["shared", "2", "4", "layer"]),
    ("attention_mlp", ["shared", "2", "4", "layer", "attention_mlp"]),
    ("4", ["shared", "2", "4"]),
    ("6", ["shared", "2", "4", "6"]),
    ("3", ["shared", "3"]),
    ("embed.*,*.mlp.*", ["shared", "embed.*,*.mlp.*"]),
  ],
)
def test_coarser_groups_are_unions(text, names):
  found = coarsenings(PARAMS, text)
  assert list(found) == names
  fine = groups_of(PARAMS, text)
  assert found["shared"] == (0,) * len(fine.names_G)
  assert found[text or "shared"] == tuple(range(len(fine.names_G)))
  for name in names[1:]:
    coarse, fine_of = _names(groups_of(PARAMS, name)), _names(fine)
    order = groups_of(PARAMS, name).names_G
    for parameter, group in fine_of.items():
      part = found[name][fine.names_G.index(group)]
      assert order[part] == coarse[parameter], (name, parameter)


def test_names_of_groups_are_names_of_a_studys_parameters():
  study = optuna.create_study()
  for text in ("attention_mlp", "embed.*,layers.[0-3].*"):
    groups = groups_of(PARAMS, text)
    names = Domain((1, 2), groups, Bounds()).names_GxK
    trial = study.ask(
      {n: FloatDistribution(0.0, 1.0) for row in names for n in row}
    )
    assert len(trial.params) == 2 * len(groups.names_G)
    assert json.loads(json.dumps(trial.params)) == trial.params
