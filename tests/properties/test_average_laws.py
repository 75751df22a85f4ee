"""The algebra of weighted averages, on random trees.

K trees; E entries of a leaf.
"""

import math

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.errors import InputError
from jaxmerge.merging.average import weighted_average
from jaxmerge.merging.method import METHODS, average_weights
from jaxmerge.merging.weight_checks import normalise
from tests.properties import random_trees
from tests.properties.random_trees import laws, shares, trees, trees_and_shares


def _newest(x, told):
  return x[-told["window"] :].mean(0)


def _by_rank(x, told):
  ranks = np.arange(1, len(x) + 1)
  return ranks @ x / ranks.sum()


def _moving(x, told):
  mean = x[0]
  for row in x[1:]:
    mean = told["decay"] * row + (1 - told["decay"]) * mean
  return mean


def _decayed(schedule):
  """A learning rate of s(i / K) on the i-th step of the trajectory."""

  def walk(x, told):
    rates = [schedule(i / len(x)) for i in range(1, len(x))]
    return x[0] + sum(s * step for s, step in zip(rates, np.diff(x, axis=0)))

  return walk


def _beyond(x, told):
  n = told["window"]
  old, new = x[len(x) - 2 * n : len(x) - n].mean(0), x[len(x) - n :].mean(0)
  return new + told["extrapolation"] * (new - old)


def _by_loss(x, told):
  weights = np.power(np.divide(1, told["losses"]), told["exponent"])
  return weights @ x / weights.sum()


def _soup(x, told):
  members = []
  for k in sorted(range(len(x)), key=lambda k: told["losses"][k]):
    if not members or told["loss"]({*members, k}) <= told["loss"](members):
      members.append(k)
  return x[members].mean(0)


# What each method does to the rows of an array, straight from its paper.
REFERENCES = {
  "uniform": lambda x, told: x.mean(0),
  "weights": lambda x, told: told["weights"] @ x / sum(told["weights"]),
  "lawa": _newest,
  "wma": _by_rank,
  "ema": _moving,
  "linear": _decayed(lambda x: 1 - x),
  "1-sqrt": _decayed(lambda x: 1 - np.sqrt(x)),
  "cosine": _decayed(lambda x: np.cos(np.pi * x) / 2 + 0.5),
  "secant": _beyond,
  "metric": _by_loss,
  "greedy": _soup,
}


@st.composite
def settings_of_methods(draw, count):
  signed = st.lists(st.floats(-1, 3), min_size=count, max_size=count)
  losses = draw(st.lists(st.floats(0.5, 5), min_size=count, max_size=count))
  table = draw(st.permutations(range(2**count)))

  def loss(members):
    """Of one its own, of a soup any number, now above and now below."""
    if len(members) == 1:
      return losses[min(members)]
    return 5 * table[sum(2**k for k in members)] / 2**count

  return {
    "window": draw(st.integers(1, count // 2)),
    "decay": draw(st.floats(0.05, 1)),
    "extrapolation": draw(st.floats(-0.5, 2)),
    "exponent": draw(st.floats(0, 8)),
    "weights": np.array(draw(signed.filter(lambda w: sum(w) > 0.5))),
    "losses": losses,
    "loss": loss,
  }


def _weights(name, count, told):
  """What the merge verb would weigh by."""
  method = METHODS[name]
  knobs = method.knobs(**{k: told[k] for k in method.uses if k in told})
  if method.acts == "on weights":
    typed = told["weights"] if method.weights == "required" else ()
    weights_K = typed if len(typed) else method.equal_weights(count)
    return average_weights(method, method.usable(weights_K, knobs), knobs)

  def loss(weights_K):
    return told["loss"]({k for k, w in enumerate(weights_K) if w > 0})

  return method.function(told["losses"], loss, knobs)


@pytest.mark.parametrize("name", REFERENCES)
@laws
@given(st.data(), st.integers(2, 5))
def test_every_method_is_its_formula_in_float64(name, data, count):
  told = data.draw(settings_of_methods(count))
  same = data.draw(trees(count))
  merged = weighted_average(same, _weights(name, count, told))
  coefficients_K = REFERENCES[name](np.eye(count), told)
  assert jax.tree.structure(merged) == jax.tree.structure(same[0])
  like = jax.tree.leaves(same[0])
  rows = zip(jax.tree.leaves(merged), like, random_trees.entries(same))
  for got, old, x_KxE in rows:
    assert (got.shape, got.dtype) == (old.shape, old.dtype)
    error_E = random_trees.float32_error(x_KxE, coefficients_K)
    error_E = error_E + 1e-12 * np.abs(x_KxE).max(0)
    exact_E = REFERENCES[name](x_KxE, told)
    random_trees.assert_near(np.asarray(got), exact_E, error_E)


def test_the_references_are_of_all_methods_with_plain_weights():
  rules = ("on weights", "on losses")
  plain = {n for n, m in METHODS.items() if m.acts in rules}
  assert plain == REFERENCES.keys()


ANY_BITS = {4: st.integers(0, 2**32 - 1), 2: st.integers(0, 2**16 - 1)}
SPECIAL = (-0.0, 1e-45, -1e-39, 6e-8, np.inf, -np.inf, np.nan, 1.5)


@st.composite
def trees_of_any_bits(draw):
  """-0.0, denormals, Inf, NaN with any payload, in each dtype."""

  def leaf(dtype):
    word = ANY_BITS[dtype.itemsize]
    some = draw(st.lists(word, min_size=4, max_size=4))
    whole = np.array(some, f"uint{8 * dtype.itemsize}").view(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
      return np.concatenate([np.array(SPECIAL, dtype), whole])

  return {str(dtype): leaf(dtype) for dtype in random_trees.DTYPES}


# Settings with which a method takes one of three alone, and which.
ALONE = (
  ("weights", {"weights": [0.0, 2.0, -0.0]}, 1),
  ("weights", {"weights": [1e-300, 0.0, 0.0]}, 0),
  ("lawa", {"window": 1}, 2),
  ("ema", {"decay": 1.0}, 2),
  ("secant", {"window": 1, "extrapolation": 0.0}, 2),
  ("metric", {"losses": [2.0, 1.0, 3.0], "exponent": 1e6}, 1),
  ("greedy", {"losses": [2.0, 1.0, 3.0], "loss": lambda _: 9.0}, 1),
)


@pytest.mark.parametrize(("name", "told", "index"), ALONE)
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@laws
@given(st.data())
def test_one_tree_alone_comes_back_bit_for_bit(name, told, index, array, data):
  same = [jax.tree.map(array, data.draw(trees_of_any_bits())) for _ in range(3)]
  before = random_trees.bits(same[index])
  weights = _weights(name, 3, {"weights": (), **told})
  found = weighted_average(same, weights)
  assert random_trees.bits(found) == before


@laws
@given(trees_and_shares(), trees_of_any_bits(), st.integers(0, 4))
def test_a_tree_of_weight_zero_might_as_well_not_be_there(case, bad, place):
  same, weights = case
  place = min(place, len(same))
  worst = jax.tree.map(lambda x: x + np.asarray(np.nan, x.dtype), same[0])
  found = weighted_average(
    [*same[:place], worst, *same[place:]],
    [*weights[:place], 0.0, *weights[place:]],
  )
  without = weighted_average(same, weights)
  assert random_trees.bits(found) == random_trees.bits(without)


@laws
@given(trees_and_shares(), st.data())
def test_trees_and_weights_may_be_permuted_together(case, data):
  same, weights = case
  order = data.draw(st.permutations(range(len(same))))
  one = weighted_average(same, weights)
  two = weighted_average([same[k] for k in order], [weights[k] for k in order])
  rows = zip(*map(jax.tree.leaves, (one, two)), random_trees.entries(same))
  for a, b, x_KxE in rows:
    error_E = 2 * random_trees.float32_error(x_KxE, normalise(weights))
    if a.dtype != np.float32:
      error_E = (
        error_E + random_trees.UNIT[b.dtype] * np.abs(np.float64(b)).ravel()
      )
    random_trees.assert_near(np.asarray(a), np.float64(b).ravel(), error_E)


@laws
@given(trees_and_shares(), st.integers(-8, 5), st.sampled_from((-1, 1)))
def test_a_power_of_two_may_be_taken_out_of_the_trees(case, power, sign):
  same, weights = case
  # Float32 alone: float16 has no room for the factor.
  same = [jax.tree.map(lambda x: x.astype(np.float32), t) for t in same]
  factor = np.float32(sign * 2.0**power)
  scaled = [jax.tree.map(lambda x: factor * x, tree) for tree in same]
  found = weighted_average(scaled, weights)
  plain = weighted_average(same, weights)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, factor * b), found, plain
  )


@laws
@given(trees_and_shares(values=random_trees.WHOLE), st.data(), shares(2))
def test_the_average_of_sums_is_the_sum_of_averages(case, data, factors):
  same, weights = case
  layout = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, np.dtype(np.float32)), same[0]
  )
  same = [jax.tree.map(lambda x: x.astype(np.float32), t) for t in same]
  c, d = (np.float32(round(f)) for f in factors)
  other = data.draw(trees(len(same), layout, random_trees.WHOLE))
  both = [
    jax.tree.map(lambda x, y: c * x + d * y, *pair) for pair in zip(same, other)
  ]
  one, two, sums = (weighted_average(t, weights) for t in (same, other, both))
  parts = [jax.tree.leaves(tree) for tree in (one, two, sums)]
  x, y = random_trees.entries(same), random_trees.entries(other)
  for a, b, found, x_KxE, y_KxE in zip(*parts, x, y):
    size_KxE = np.abs(c * x_KxE) + np.abs(d * y_KxE)
    error_E = 3 * random_trees.float32_error(size_KxE, normalise(weights))
    expected_E = (c * np.float64(a) + d * np.float64(b)).ravel()
    random_trees.assert_near(np.asarray(found), expected_E, error_E)


@laws
@given(trees_and_shares())
def test_every_entry_is_between_those_of_the_trees(case):
  same, weights = case
  merged = jax.tree.leaves(weighted_average(same, weights))
  used = [tree for tree, weight in zip(same, weights) if weight]
  for got, x_KxE in zip(merged, random_trees.entries(used)):
    low_E, high_E = x_KxE.min(0), x_KxE.max(0)
    got_E = np.float64(got).ravel()
    # The ends are numbers of 16 bits, and their rounding is monotonic.
    part = 2.0**-24 * (len(used) + 1) if got.dtype == np.float32 else 0.0
    assert (got_E >= low_E - part * np.abs(low_E)).all()
    assert (got_E <= high_E + part * np.abs(high_E)).all()


@laws
@given(trees_and_shares(), st.floats(1e-6, 1e6), st.integers(-40, 40))
def test_the_scale_of_the_weights_does_not_matter(case, factor, power):
  same, weights = case
  plain = weighted_average(same, weights)
  exact = weighted_average(same, [w * 2.0**power for w in weights])
  assert random_trees.bits(exact) == random_trees.bits(plain)
  any_scale = normalise([w * factor for w in weights])
  np.testing.assert_allclose(any_scale, normalise(weights), rtol=1e-15)


@laws
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=6))
def test_weights_are_shares_of_one_or_refused(weights):
  # A sum that is all rounding is not one to divide by.
  total = math.fsum(weights)
  hypothesis.assume(not 0 < total < 1e-6)
  if total <= 0:
    with pytest.raises(InputError):
      normalise(weights)
    return
  found = normalise(weights)
  size = math.fsum(map(abs, found))
  assert math.fsum(found) == pytest.approx(1, abs=1e-15 * size)
  np.testing.assert_allclose(np.multiply(found, total), weights, rtol=1e-15)


@pytest.mark.parametrize("weights", [[1e308, 1e308], [1e308, -1e308, 1e-10]])
def test_weights_near_the_largest_number_are_shares_or_refused(weights):
  try:
    found = normalise(weights)
  except InputError:
    return
  assert np.isfinite(found).all()


def _sixteen_bits(seed, count):
  rng = np.random.default_rng(seed)
  x_KxE = random_trees.normal(rng, (count, 2000), ml_dtypes.bfloat16)
  weights_K = rng.dirichlet(np.full(count, 4.0))
  return x_KxE, weights_K, weights_K @ x_KxE.astype(np.float64)


def _rounded(exact_E):
  """The nearest bfloat16 to each float64, by search among its neighbours."""
  near = exact_E.astype(ml_dtypes.bfloat16)
  up, down = (np.nextafter(near, np.array(v, near.dtype)) for v in (9e9, -9e9))
  three = np.stack([near, up, down]).astype(np.float64)
  best_E = np.abs(three - exact_E).argmin(0)
  return three[best_E, np.arange(len(exact_E))]


@laws
@given(random_trees.SEEDS, st.integers(2, 5))
def test_bfloat16_is_rounded_once(seed, count):
  x_KxE, weights_K, exact_E = _sixteen_bits(seed, count)
  found = weighted_average([{"x": x} for x in x_KxE], weights_K)["x"]
  least_E = np.abs(_rounded(exact_E) - exact_E)
  error_E = np.abs(np.float64(found) - exact_E)
  extra_E = 2 * random_trees.float32_error(np.float64(x_KxE), weights_K)
  assert (error_E <= least_E + extra_E).all()
  assert error_E.mean() == pytest.approx(least_E.mean(), rel=1e-3)


@laws
@given(random_trees.SEEDS)
def test_rounding_each_product_and_sum_to_bfloat16_would_be_worse(seed):
  x_KxE, weights_K, exact_E = _sixteen_bits(seed, 3)
  total_E = np.zeros_like(x_KxE[0])
  for weight, x_E in zip(weights_K.astype(np.float32), x_KxE):
    total_E = total_E + (weight * np.float32(x_E)).astype(x_E.dtype)
  assert total_E.dtype == ml_dtypes.bfloat16
  theirs = np.abs(np.float64(total_E) - exact_E).mean()
  found = weighted_average([{"x": x} for x in x_KxE], weights_K)["x"]
  ours = np.abs(np.float64(found) - exact_E).mean()
  assert theirs / ours > 1.3
