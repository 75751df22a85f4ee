"""Stacks of layers, groups of parameters, and what treats them apart.

K trees, L layers.
"""

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.merging.average import grouped_average, weighted_average
from jaxmerge.merging.groups import Groups
from jaxmerge.merging.methods.fisher import fisher_average
from tests.merging.in_memory import merge_trees
from tests.properties import random_trees
from tests.properties.random_trees import laws, shares, trees

# L, the shape of a layer and its dtype.
STACKS = (
  (3, (2, 5), np.float32),
  (4, (1, 3), ml_dtypes.bfloat16),
  (2, (), np.float32),
)
BFLOAT16 = 1
STACK = st.sampled_from(range(len(STACKS)))


def _stacked(rng, which, shift=0.0):
  depth, shape, dtype = STACKS[which]
  kernel = shift + rng.normal(size=(depth, *shape))
  return {"layers": {"mlp": {"kernel": kernel.astype(dtype)}}}


def _layer(tree, i):
  """A tree of one layer, by names that are not those of a stack."""
  return {"layer": jax.tree.map(lambda x: x[i], tree["layers"])}


def _weighted(base, same, weights, fishers):
  return weighted_average(same, weights)


def _arithmetic(base, same, weights, fishers):
  return merge_trees("task_arithmetic", same, weights, base=base)


def _fisher(base, same, weights, fishers):
  return fisher_average(same, fishers, weights)


def _slerp(base, same, weights, fishers):
  return merge_trees("slerp", same[:2], weights[:2])


def _karcher(base, same, weights, fishers):
  return merge_trees("karcher", same, weights)


def _ties(base, same, weights, fishers):
  knobs = {"density": 0.4, "scale": 0.7}
  return merge_trees("ties", same, weights, base=base, **knobs)


def _stock(base, same, weights, fishers):
  return merge_trees("model_stock", same, base=base)


def _dare_of_none(base, same, weights, fishers):
  """Which entries are dropped depends on the stack, none does not."""
  return merge_trees("dare", same[:1], base=base, drop_rate=0.0, seed=3)


def _dare(base, same, weights, fishers):
  knobs = {"drop_rate": 0.5, "seed": 3}
  return merge_trees("dare", same, weights, base=base, **knobs)


ALL = (
  _weighted,
  _arithmetic,
  _fisher,
  _slerp,
  _karcher,
  _ties,
  _stock,
  _dare_of_none,
)


def _case(seed, which):
  rng = np.random.default_rng(seed)
  base = _stacked(rng, which)
  # A common part, so that no mean direction vanishes.
  same = [_stacked(rng, which, shift=1.5) for _ in range(3)]
  fishers = [jax.tree.map(np.square, _stacked(rng, which)) for _ in same]
  return base, same, rng.dirichlet(np.full(3, 4.0)).tolist(), fishers


@pytest.mark.parametrize("method", ALL)
@hypothesis.settings(laws, max_examples=15)
@given(random_trees.SEEDS, STACK)
def test_a_stack_is_merged_as_its_layers_are(method, seed, which):
  base, same, weights, fishers = _case(seed, which)
  found = method(base, same, weights, fishers)
  depth, _, dtype = STACKS[which]
  for i in range(depth):
    layers, more = ([_layer(t, i) for t in ts] for ts in (same, fishers))
    alone = method(_layer(base, i), layers, weights, more)
    tolerance = 1e-5 + (dtype != np.float32) * 2.0**-7
    random_trees.assert_close(_layer(found, i), alone, tolerance)


@pytest.mark.parametrize("method", [*ALL[1:-1], _dare])
@hypothesis.settings(laws, max_examples=10)
@given(random_trees.SEEDS)
def test_every_method_is_float32_inside_and_casts_once(method, seed):
  base, same, weights, fishers = _case(seed, BFLOAT16)
  wide_base, *wide = jax.tree.map(np.float32, [base, *same])
  found = jax.tree.leaves(method(base, same, weights, fishers))
  exact = jax.tree.leaves(method(wide_base, wide, weights, fishers))
  for got, x in zip(found, exact):
    assert got.dtype == ml_dtypes.bfloat16
    exact_E = np.float64(x).ravel()
    random_trees.assert_near(np.asarray(got), exact_E, 1e-6)


@pytest.mark.parametrize("method", [_slerp, _karcher, _ties, _stock])
def test_what_is_not_elementwise_tells_a_stack_from_a_tensor(method):
  """Else the test above could not fail."""
  base, same, weights, fishers = _case(0, 0)

  def renamed(tree):
    return {"stack": tree["layers"]}

  found = method(base, same, weights, fishers)["layers"]
  one = method(renamed(base), list(map(renamed, same)), weights, fishers)
  kernels = (tree["mlp"]["kernel"] for tree in (found, one["stack"]))
  assert not np.allclose(*kernels, rtol=1e-2)


@st.composite
def grouped_trees(draw):
  """Trees of a stack of three layers and two more, and their groups.

  A fourth group holds nothing: rows that differ there alone are not equal.
  """
  dtype = draw(st.sampled_from(random_trees.DTYPES))
  layout = {
    "embed": jax.ShapeDtypeStruct((3,), dtype),
    "layers": {"kernel": jax.ShapeDtypeStruct((3, 2), dtype)},
    "head": jax.ShapeDtypeStruct((), dtype),
  }
  of_leaf = {
    "embed": np.int32(0),
    "layers": {"kernel": np.array([1, 1, 2], np.int32)},
    "head": np.int32(2),
  }
  groups = Groups(("a", "b", "c", "none"), of_leaf, (0.25, 0.4, 0.35, 0.0))
  return draw(trees(3, layout)), groups


def _of_group(tree, index, groups):
  """The entries of a group, leaf after leaf."""

  def pick(group, leaf):
    spread = np.reshape(
      group, np.shape(group) + (1,) * (leaf.ndim - group.ndim)
    )
    return np.asarray(leaf)[np.broadcast_to(spread == index, leaf.shape)]

  picked = jax.tree.map(pick, groups.of_leaf, tree)
  return np.concatenate(jax.tree.leaves(picked))


@laws
@given(grouped_trees(), shares(3))
def test_rows_that_are_equal_are_the_plain_average(case, weights):
  same, groups = case
  elsewhere = [1.0, 0.0, 0.0] if weights[1] else [0.0, 1.0, 0.0]
  rows = [[w * scale for w in weights] for scale in (1, 2, 0.25)]
  found = grouped_average(same, [*rows, elsewhere], groups)
  plain = weighted_average(same, weights)
  leaves = zip(*map(jax.tree.leaves, (found, plain)))
  for (a, b), x_KxE in zip(leaves, random_trees.entries(same)):
    error_E = random_trees.float32_error(
      x_KxE, np.divide(weights, sum(weights))
    )
    exact_E = np.float64(b).ravel()
    if a.dtype != np.float32:
      error_E = error_E + random_trees.UNIT[b.dtype] * np.abs(exact_E)
    random_trees.assert_near(np.asarray(a), exact_E, error_E)


@laws
@given(grouped_trees(), st.lists(shares(3), min_size=4, max_size=4))
def test_each_group_is_the_average_at_its_own_weights(case, rows):
  same, groups = case
  found = grouped_average(same, rows, groups)
  for index, row in enumerate(rows[:3]):
    x_KxE = np.stack([_of_group(tree, index, groups) for tree in same])
    x_KxE = x_KxE.astype(np.float64)
    shares_K = np.divide(row, sum(row))
    random_trees.assert_near(
      _of_group(found, index, groups),
      shares_K @ x_KxE,
      random_trees.float32_error(x_KxE, shares_K),
    )


ONE_HOT = st.lists(st.integers(0, 2), min_size=4, max_size=4)


@laws
@given(grouped_trees(), ONE_HOT)
def test_a_group_of_one_tree_has_its_numbers(case, chosen):
  same, groups = case
  found = grouped_average(same, np.eye(3)[chosen].tolist(), groups)
  for index, k in enumerate(chosen[:3]):
    np.testing.assert_array_equal(
      _of_group(found, index, groups), _of_group(same[k], index, groups)
    )


@pytest.mark.parametrize("word", [0x80000000, 1, 0x7F800001])
def test_a_group_of_one_tree_has_its_bits(word):
  special = np.full(2, word, np.uint32).view(np.float32)
  same = [{"x": special, "y": special}, {"x": np.ones(2), "y": np.ones(2)}]
  same = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), same)
  groups = Groups(("x", "y"), {"x": np.int32(0), "y": np.int32(1)}, (0.5, 0.5))
  found = grouped_average(same, [[1, 0], [0, 1]], groups)
  assert np.asarray(found["x"]).tobytes() == special.tobytes()
