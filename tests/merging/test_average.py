import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxmerge.errors import InputError
from jaxmerge.merging import average

FINITE = st.floats(-1e3, 1e3, width=32)


@st.composite
def trees_and_weights(draw):
  count = draw(st.integers(2, 4))
  shape = draw(hnp.array_shapes(max_dims=2, max_side=4))
  trees = [
    {
      "a": draw(hnp.arrays(np.float32, shape, elements=FINITE)),
      "b": {"c": draw(hnp.arrays(np.float32, (3,), elements=FINITE))},
    }
    for _ in range(count)
  ]
  weights = draw(
    st.lists(st.floats(0.01, 10.0), min_size=count, max_size=count)
  )
  return trees, weights


def reference(leaves, weights):
  weights = np.asarray(weights, np.float64)
  stacked = np.stack([np.asarray(leaf, np.float64) for leaf in leaves])
  return np.tensordot(weights / weights.sum(), stacked, axes=1)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(trees_and_weights())
def test_equals_a_float64_reference(case):
  trees, weights = case
  merged = average.weighted_average(trees, weights)
  for get in (lambda t: t["a"], lambda t: t["b"]["c"]):
    leaves = [get(tree) for tree in trees]
    size = max(np.abs(leaf).max() for leaf in leaves)
    np.testing.assert_allclose(
      np.asarray(get(merged)),
      reference(leaves, weights),
      rtol=1e-6,
      atol=1e-6 * max(size, 1e-30),
    )


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(trees_and_weights(), st.randoms())
def test_order_of_the_trees_does_not_matter(case, random):
  trees, weights = case
  order = list(range(len(trees)))
  random.shuffle(order)
  merged = average.weighted_average(trees, weights)
  shuffled = average.weighted_average(
    [trees[i] for i in order], [weights[i] for i in order]
  )
  np.testing.assert_allclose(merged["a"], shuffled["a"], rtol=1e-5, atol=1e-3)


def test_one_hot_returns_that_tree_bit_for_bit():
  special = np.array([-0.0, 1e-45, np.inf, np.nan, 1.5], np.float32)
  other = np.full(5, np.inf, np.float32)
  merged = average.weighted_average([{"x": other}, {"x": special}], [0, 2])
  assert np.asarray(merged["x"]).tobytes() == special.tobytes()


def test_a_tree_of_weight_zero_is_skipped():
  trees = [{"x": np.float32([v])} for v in (1.0, np.inf, 3.0)]
  merged = average.weighted_average(trees, [1, 0, 1])
  assert merged["x"][0] == 2.0


def test_bfloat16_is_summed_in_float32_and_cast_once():
  random = np.random.default_rng(0)
  leaves = [
    random.normal(size=1000).astype(ml_dtypes.bfloat16) for _ in range(3)
  ]
  weights = [0.2, 0.3, 0.5]
  merged = average.weighted_average([{"x": x} for x in leaves], weights)["x"]
  exact = reference(leaves, weights)
  once = exact.astype(ml_dtypes.bfloat16).astype(np.float64)
  assert merged.dtype == jnp.bfloat16
  got = np.abs(np.asarray(merged, np.float64) - exact).max()
  assert got <= np.abs(once - exact).max() * (1 + 1e-6)


def test_the_inputs_are_not_donated():
  trees = [{"x": jnp.arange(3.0)}, {"x": jnp.ones(3)}]
  average.weighted_average(trees, [1, 1])
  np.testing.assert_array_equal(trees[0]["x"], [0, 1, 2])


def test_one_compile_whatever_the_weights():
  trees = [{"only here": jnp.ones((7, 3))}, {"only here": jnp.zeros((7, 3))}]
  before = average._average._cache_size()
  for weight in (0.1, np.float64(0.2), 0.3, 1):
    average.weighted_average(trees, [weight, 1])
  assert average._average._cache_size() == before + 1


def test_unequal_trees_are_refused_with_all_problems():
  a = {"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)}
  b = {"x": np.zeros(4, np.float32), "z": np.zeros(3, np.float32)}
  with pytest.raises(InputError) as error:
    average.weighted_average([a, b], [1, 1])
  text = str(error.value)
  assert all(name in text for name in ("['x']", "['y']", "['z']"))
  assert len(error.value.problems) == 3


@pytest.mark.parametrize(
  ("dtype", "named"), [(np.int32, "int32"), (np.float64, "float64")]
)
def test_leaves_that_cannot_be_averaged_are_refused(dtype, named):
  tree = {"x": np.zeros(2, dtype)}
  with pytest.raises(InputError, match=named):
    average.weighted_average([tree, tree], [1, 1])


@pytest.mark.parametrize(
  ("weights", "problem"),
  [
    ([1.0], "2 trees but 1 weights"),
    ([float("nan"), 1.0], "not finite"),
    ([1.0, -1.0], "not above zero"),
  ],
)
def test_unusable_weights_are_refused(weights, problem):
  tree = {"x": np.zeros(2, np.float32)}
  with pytest.raises(InputError, match=problem):
    average.weighted_average([tree, tree], weights)


def test_extrapolation_past_the_last_tree():
  trees = [{"x": jnp.float32([1.0])}, {"x": jnp.float32([2.0])}]
  merged = jax.device_get(average.weighted_average(trees, [-0.5, 1.5]))
  assert merged["x"][0] == 2.5
