"""Groups of parameters, and merges with weights for each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.errors import InputError
from jaxmerge.merging import average
from jaxmerge.merging.groups import Groups, layer_groups, one_group


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
  groups = layer_groups(_tree(), 2)
  assert groups.names_G == ("embeddings", "band_0", "band_1", "head")
  band_L = groups.of_leaf["layers"]["mlp"]["kernel"]
  assert band_L.tolist() == [1, 1, 1, 2, 2]
  assert int(groups.of_leaf["embed"]["embedding"]) == 0
  assert int(groups.of_leaf["final_norm"]["scale"]) == 3
  np.testing.assert_allclose(groups.shares_G, np.array([8, 18, 12, 3]) / 41)


@pytest.mark.parametrize("bands", [0, 6])
def test_bands_that_the_model_has_not(bands):
  with pytest.raises(InputError, match="5 layers: from 1 to 5 bands"):
    layer_groups(_tree(), bands)


def test_a_parameter_of_no_group_is_named():
  with pytest.raises(InputError, match="'router/kernel'"):
    layer_groups({**_tree(), "router": {"kernel": np.zeros(2)}}, 1)


def test_grouped_average_by_hand():
  trees = [_float32(_tree(seed)) for seed in range(3)]
  groups = layer_groups(trees[0], 5)
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
  groups = layer_groups(trees[0], 2)
  found = average.grouped_average(trees, [[0.3, 0.7]] * 4, groups)
  plain = average.weighted_average(trees, [0.3, 0.7])
  jax.tree.map(np.testing.assert_array_equal, found, plain)
  alone = average.grouped_average(trees, [[0.0, 1.0]] * 4, groups)
  assert alone is trees[1]


def test_a_tree_without_a_weight_anywhere_is_not_touched():
  trees = [_float32(_tree(seed)) for seed in range(3)]
  trees[1] = jax.tree.map(lambda x: x * jnp.nan, trees[1])
  groups = layer_groups(trees[0], 1)
  rows = [[1.0, 0.0, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 1.0]]
  found = average.grouped_average(trees, rows, groups)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_a_weight_of_zero_in_one_group_keeps_nan_out_of_it():
  trees = [_float32(_tree(seed)) for seed in range(2)]
  table = trees[0]["embed"]["embedding"] * jnp.nan
  trees[0] = {**trees[0], "embed": {"embedding": table}}
  rows = [[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]]
  groups = layer_groups(trees[0], 1)
  found = average.grouped_average(trees, rows, groups)
  np.testing.assert_array_equal(
    found["embed"]["embedding"], trees[1]["embed"]["embedding"]
  )
  assert np.isfinite(found["layers"]["mlp"]["kernel"]).all()


def test_a_row_for_each_group():
  trees = [_float32(_tree(seed)) for seed in range(2)]
  with pytest.raises(InputError, match="4 groups but 1 rows"):
    average.grouped_average(trees, [[0.5, 0.5]], layer_groups(trees[0], 2))
  assert isinstance(one_group(trees[0]), Groups)
