"""Task arithmetic, TIES, DARE, Model Stock, Fisher: laws on random trees.

K trees; E entries of a leaf.
"""

import math

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.errors import InputError
from jaxmerge.merging.average import weighted_average
from jaxmerge.merging.methods.fisher import fisher_average
from tests.merging.in_memory import merge_trees
from tests.properties import random_trees
from tests.properties.random_trees import SEEDS, assert_close, laws


def _arithmetic(base, same, weights):
  return merge_trees("task_arithmetic", same, weights, base=base)


def _ties(base, same, weights, *, density=1.0, scale=1.0):
  knobs = {"density": density, "scale": scale}
  return merge_trees("ties", same, weights, base=base, **knobs)


def _stock(base, same):
  return merge_trees("model_stock", same, base=base)


def _thin(base, same, drop_rate, seed):
  """Each tree with the task vector that DARE leaves it, between bases."""
  knobs = {"drop_rate": drop_rate, "seed": seed}
  return [
    merge_trees(
      "dare",
      [tree if k == i else base for k in range(len(same))],
      base=base,
      **knobs,
    )
    for i, tree in enumerate(same)
  ]


def _tree(rng, dtype=np.float32):
  return {
    "layers": {"kernel": random_trees.normal(rng, (2, 3, 4), dtype)},
    "norm": random_trees.normal(rng, (5,), dtype),
  }


def _case(seed, count=3, dtype=np.float32):
  rng = np.random.default_rng(seed)
  base = _tree(rng, dtype)
  return rng, base, [_tree(rng, dtype) for _ in range(count)]


def _minus(a, b):
  return jax.tree.map(lambda x, y: np.float32(x) - np.float32(y), a, b)


@laws
@given(SEEDS)
def test_task_arithmetic_with_shares_of_one_is_the_average(seed):
  rng, base, same = _case(seed)
  weights = rng.dirichlet(np.ones(3))
  found = _arithmetic(base, same, weights)
  assert_close(found, weighted_average(same, weights))


@laws
@given(SEEDS, st.floats(-2, 2), st.floats(-2, 2))
def test_task_arithmetic_goes_each_way_by_its_weight(seed, v, w):
  _, base, same = _case(seed, 2)
  found = _arithmetic(base, same, [v, w])
  steps = _minus(found, base), *(_minus(tree, base) for tree in same)
  jax.tree.map(
    lambda c, a, b: np.testing.assert_allclose(c, v * a + w * b, atol=2e-5),
    *steps,
  )


def _numpy_ties(base, ends, weights, density, scale):
  """The paper's three steps for one tensor, entry by entry."""
  kept = []
  for end in ends:
    tau = (np.float64(end) - np.float64(base)).ravel()
    largest = np.argsort(-np.abs(tau))[: math.ceil(density * tau.size)]
    kept.append({int(i): tau[i] for i in largest})
  merged = np.float64(base).ravel()
  for i in range(merged.size):
    votes = [(w, tau[i]) for w, tau in zip(weights, kept) if i in tau]
    sign = np.sign(sum(w * value for w, value in votes))
    agreed = [(w, value) for w, value in votes if np.sign(value) == sign]
    if agreed:
      step = sum(w * value for w, value in agreed) / sum(w for w, _ in agreed)
      merged[i] += scale * step
  return merged.reshape(np.shape(base))


DENSITIES = st.sampled_from((0.2, 0.5, 1.0))


@laws
@given(SEEDS, DENSITIES, st.floats(0.1, 2))
def test_ties_is_the_three_steps_in_numpy(seed, density, scale):
  rng, base, same = _case(seed)
  weights = rng.uniform(0.2, 2, 3)
  found = _ties(base, same, weights, density=density, scale=scale)
  args = (weights, density, np.float32(scale))
  norm = _numpy_ties(base["norm"], [t["norm"] for t in same], *args)
  np.testing.assert_allclose(found["norm"], norm, atol=2e-5)
  kernels = [t["layers"]["kernel"] for t in (base, *same)]
  for layer, start, *ends in zip(found["layers"]["kernel"], *kernels):
    expected = _numpy_ties(start, ends, *args)
    np.testing.assert_allclose(layer, expected, atol=2e-5)


def test_ties_of_three_by_hand():
  base = {"x": np.float32([1, 1, 1, 1])}
  taus = ([4, -3, 1, 2], [-2, -5, 6, 1], [-3, 4, 8, 0])
  same = [{"x": base["x"] + np.float32(tau)} for tau in taus]
  # Half is kept: 4 -3 . . | . -5 6 . | . 4 8 . with the signs + - + 0.
  found = _ties(base, same, [1, 1, 2], density=0.5, scale=0.5)
  # The second entry: -3 - 5 + 2 * 4 = 0 elects no sign.
  np.testing.assert_allclose(
    found["x"], [3, 1, 1 + 0.5 * (6 + 16) / 3, 1], rtol=1e-6
  )
  found = _ties(base, same, [1, 1, 1], density=0.5, scale=0.5)
  np.testing.assert_allclose(found["x"], [3, -1, 4.5, 1], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@laws
@given(SEEDS, st.floats(0.1, 5))
def test_ties_of_one_whole_task_is_its_tree(dtype, seed, weight):
  _, base, (tree,) = _case(seed, 1, dtype)
  found = _ties(base, [tree], [weight], density=1.0, scale=1.0)
  tolerance = (
    1e-6 if dtype == np.float32 else random_trees.UNIT[np.dtype(dtype)]
  )
  assert_close(found, tree, tolerance)


@laws
@given(SEEDS, st.permutations(range(3)), st.floats(0.1, 10))
def test_order_and_scale_of_weights_change_no_task_vector(seed, order, factor):
  rng, base, same = _case(seed)
  weights = rng.uniform(0.2, 2, 3)
  moved = [same[k] for k in order]
  moved_weights = weights[list(order)]
  sum_of = _arithmetic
  assert_close(sum_of(base, moved, moved_weights), sum_of(base, same, weights))
  assert_close(_stock(base, moved), _stock(base, same), 1e-5)
  one, two = (
    _ties(base, t, w, density=0.5, scale=1.0)
    for t, w in ((same, weights), (moved, factor * moved_weights))
  )
  assert_close(one, two, 1e-5)


@laws
@given(SEEDS, st.floats(0.05, 0.95))
def test_what_dare_keeps_is_divided_by_what_stays(seed, drop):
  _, base, same = _case(seed, 2)
  for tree, thin in zip(same, _thin(base, same, drop, seed % 1000)):
    kept = jax.tree.map(lambda tau: tau / (1 - drop), _minus(tree, base))
    found = _minus(thin, base)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(kept)):
      is_kept = np.isclose(a, b, rtol=1e-5, atol=1e-5)
      assert (is_kept | (a == 0)).all()


@laws
@given(SEEDS, st.integers(0, 99))
def test_dare_that_drops_nothing_is_the_identity(seed, key):
  _, base, same = _case(seed, 2)
  found = _thin(base, same, 0.0, key)
  for tree, thin in zip(same, found):
    assert_close(thin, tree, 1e-6)


@pytest.mark.parametrize("drop", [0.5, 0.9])
def test_the_mean_of_many_draws_is_the_task_vector(drop):
  _, base, same = _case(1, 1)
  count = 400
  total = [np.zeros(2 * 3 * 4), np.zeros(5)]
  for seed in range(count):
    (thin,) = _thin(base, same, drop, seed)
    for sums, leaf in zip(total, jax.tree.leaves(_minus(thin, base))):
      sums += leaf.ravel()
  for sums, leaf in zip(total, jax.tree.leaves(_minus(same[0], base))):
    tau = np.float64(leaf).ravel()
    error = np.abs(tau) * math.sqrt(drop / (1 - drop) / count)
    assert (np.abs(sums / count - tau) < 4 * error).all()


@laws
@given(SEEDS, st.integers(2, 4))
def test_model_stock_of_identical_trees_is_that_tree(seed, count):
  _, base, (tree,) = _case(seed, 1)
  assert_close(_stock(base, [tree] * count), tree, 1e-6 * count)


def _orthonormal(rng, count):
  q, _ = np.linalg.qr(rng.normal(size=(8, count)))
  return q.T


@laws
@given(SEEDS, st.integers(2, 4), st.floats(0.5, 5))
def test_model_stock_of_right_angles_is_the_base(seed, count, length):
  rng = np.random.default_rng(seed)
  base = {"x": random_trees.normal(rng, 8)}
  taus = length * _orthonormal(rng, count)
  same = [{"x": np.float32(base["x"] + tau)} for tau in taus]
  np.testing.assert_allclose(
    _stock(base, same)["x"], base["x"], atol=5e-6 * (1 + length)
  )


@pytest.mark.parametrize("degrees", [10, 45, 60, 80])
@laws
@given(SEEDS)
def test_model_stock_of_two_goes_as_far_as_their_angle_says(degrees, seed):
  rng = np.random.default_rng(seed)
  base = {"x": random_trees.normal(rng, 8)}
  u, v = _orthonormal(rng, 2)
  angle = np.radians(degrees)
  taus = 2 * u, 2 * (np.cos(angle) * u + np.sin(angle) * v)
  same = [{"x": np.float32(base["x"] + tau)} for tau in taus]
  found = _stock(base, same)["x"]
  t = 2 * np.cos(angle) / (1 + np.cos(angle))
  expected = base["x"] + t * (taus[0] + taus[1]) / 2
  np.testing.assert_allclose(found, expected, atol=1e-5)


@laws
@given(SEEDS, st.integers(2, 4))
def test_the_fisher_average_is_its_formula_in_float64(seed, count):
  rng, _, same = _case(seed, count)
  fishers = [jax.tree.map(np.square, _tree(rng)) for _ in same]
  weights = rng.dirichlet(np.ones(count))
  found = jax.tree.leaves(fisher_average(same, fishers, weights))
  rows = zip(*map(random_trees.entries, (same, fishers)))
  for got, (x_KxE, f_KxE) in zip(found, rows):
    sure_KxE = weights[:, None] * (f_KxE + 1e-8)
    exact_E = (sure_KxE * x_KxE).sum(0) / sure_KxE.sum(0)
    np.testing.assert_allclose(np.ravel(got), exact_E, atol=1e-5)
    assert (np.ravel(got) >= x_KxE.min(0) - 1e-6).all()
    assert (np.ravel(got) <= x_KxE.max(0) + 1e-6).all()


@laws
@given(SEEDS, st.permutations(range(3)), st.floats(0.1, 10))
def test_the_fisher_average_has_no_order_and_no_scale(seed, order, factor):
  rng, _, same = _case(seed)
  fishers = [jax.tree.map(np.square, _tree(rng)) for _ in same]
  weights = rng.dirichlet(np.ones(3))
  moved = (
    [same[k] for k in order],
    [fishers[k] for k in order],
    factor * weights[list(order)],
  )
  assert_close(fisher_average(*moved), fisher_average(same, fishers, weights))


def test_ties_refuses_a_negative_weight():
  base, tree = {"x": np.float32([0, 0])}, {"x": np.float32([1, 2])}
  with pytest.raises(InputError, match="weight >= 0"):
    _ties(base, [tree] * 2, [2, -1], density=1.0, scale=1.0)


def test_ties_of_an_empty_tensor_is_empty():
  empty = {"x": np.zeros((0, 2), np.float32)}
  found = _ties(empty, [empty], [1], density=0.5, scale=1.0)
  assert found["x"].shape == (0, 2)


def _fisher(base, same, weights):
  return fisher_average(same, [{"x": np.ones(2, np.float32)}] * 2, weights)


SKIPPING = {
  "fisher": _fisher,
  "ties": _ties,
  "task_arithmetic": _arithmetic,
  "karcher": lambda base, *given: merge_trees("karcher", *given),
  "slerp": lambda base, *given: merge_trees("slerp", *given),
}


@pytest.mark.parametrize("name", SKIPPING)
def test_a_tree_of_weight_zero_spreads_nothing(name):
  base = {"x": np.float32([0.5, -0.5])}
  tree, diverged = {"x": np.float32([1, 2])}, {"x": np.float32([np.inf, 1])}
  found = SKIPPING[name](base, [tree, diverged], [1.0, 0.0])
  np.testing.assert_allclose(found["x"], tree["x"], rtol=1e-6)
