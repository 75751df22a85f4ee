"""Laws of every registered merge method, read from its record.

K trees.
"""

import hypothesis
import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from jaxmerge.merging.average import weighted_average
from jaxmerge.merging.differences import gram_of_trees, gram_weights
from jaxmerge.merging.method import METHODS, average_weights
from jaxmerge.merging.per_tensor import merge_tensors
from tests.merging.in_memory import merge_trees
from tests.properties import random_trees
from tests.properties.random_trees import SEEDS, assert_close

few = hypothesis.settings(random_trees.laws, max_examples=8)

ON_TENSORS = [name for name, method in METHODS.items() if method.on_tensors]


def _tree(rng):
  # A common part, so that no mean direction vanishes.
  return {
    "layers": {"kernel": 1.5 + random_trees.normal(rng, (3, 4, 5))},
    "table": 1.5 + random_trees.normal(rng, (6, 7)),
    "scale": np.float32(1.5 + rng.normal()),
  }


def _case(seed, method, count=3):
  rng = np.random.default_rng(seed)
  count = method.most or count
  same = [_tree(rng) for _ in range(count)]
  weights = rng.dirichlet(np.full(count, 4.0)).tolist()
  return same, weights if method.weights != "none" else [], _tree(rng)


def _merged(name, same, weights, base, **knobs):
  """What the merge verb makes of trees, with losses and models made up."""
  method = METHODS[name]
  if method.on_tensors:
    return merge_trees(name, same, weights, base=base, **knobs)
  knobs = method.knobs(**({"window": 1} if "window" in method.uses else {}))
  weights = method.usable(weights or method.equal_weights(len(same)), knobs)
  if method.acts == "on weights":
    return weighted_average(same, average_weights(method, weights, knobs))
  if method.acts == "on losses":
    losses = [float(np.mean(tree["table"] ** 2)) for tree in same]

    def loss(weights_K):
      return float(np.dot(weights_K, losses))

    return weighted_average(same, method.function(losses, loss, knobs))
  if method.acts == "on grams":
    gram_PxP = gram_of_trees(same)
    return weighted_average(same, gram_weights(method, gram_PxP, knobs))
  if method.acts == "on derivatives":
    [found] = method.function(lambda: {"": weights}, knobs).values()
    return weighted_average(same, found)
  answers = [_answer(name, tree) for tree in same]
  return method.function(same, answers, weights, knobs)


def _answer(name, tree):
  """As a model would answer; of RegMean, a Gram for the table alone."""
  if name == "regmean":
    return {"table": tree["table"] @ tree["table"].T}
  return jax.tree.map(np.square, tree)


@pytest.mark.parametrize("name", METHODS)
@few
@given(SEEDS)
def test_equal_inputs_give_that_input(name, seed):
  """With a base: inputs that have learned nothing since give the base."""
  method = METHODS[name]
  same, weights, base = _case(seed, method)
  one = base if method.base else same[0]
  found = _merged(name, [one] * len(same), weights, one)
  assert_close(found, one, 1e-5)


@pytest.mark.parametrize(
  "name", [n for n, m in METHODS.items() if not (m.ordered or m.prepare)]
)
@few
@given(SEEDS)
def test_inputs_and_weights_may_be_permuted_together(name, seed):
  same, weights, base = _case(seed, METHODS[name])
  found = _merged(name, same, weights, base)
  turned = _merged(name, same[::-1], weights[::-1], base)
  assert_close(turned, found, 1e-4)


@pytest.mark.parametrize("name", ON_TENSORS)
@few
@given(SEEDS)
def test_a_stack_is_merged_as_its_layers_are(name, seed):
  method = METHODS[name]
  same, weights, base = _case(seed, method)
  # Which entries are dropped depends on the stack, none does not.
  knobs = {"drop_rate": 0.0} if method.prepare else {}
  found = _merged(name, same, weights, base, **knobs)
  for layer in range(3):

    def alone(tree, layer=layer):
      return {"one": tree["layers"]["kernel"][layer]}

    one = _merged(name, list(map(alone, same)), weights, alone(base), **knobs)
    assert_close(alone(found), one, 1e-5)


@pytest.mark.parametrize(
  "name", [n for n, m in METHODS.items() if m.acts == "elementwise"]
)
@few
@given(SEEDS)
def test_rows_are_merged_as_the_whole_is(name, seed):
  method = METHODS[name]
  same, weights, base = _case(seed, method)
  knobs = method.knobs()
  weights_K = method.usable(weights or method.equal_weights(len(same)), knobs)

  def rows(part):
    tables = [tree["table"][part] for tree in same]
    start = base["table"][part] if method.base else None
    return merge_tensors(method, knobs, tables, weights_K, start, name="table")

  whole = rows(slice(None))
  parts = [rows(slice(0, 2)), rows(slice(2, 6))]
  np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)


@pytest.mark.parametrize("name", ON_TENSORS)
@few
@given(SEEDS)
def test_every_method_is_float32_inside_and_casts_once(name, seed):
  same, weights, base = _case(seed, METHODS[name])
  narrow = jax.tree.map(
    lambda x: np.asarray(x, ml_dtypes.bfloat16), [base, *same]
  )
  wide = jax.tree.map(np.float32, narrow)
  found = _merged(name, narrow[1:], weights, narrow[0])
  exact = _merged(name, wide[1:], weights, wide[0])
  for got, x in zip(*map(jax.tree.leaves, (found, exact))):
    assert got.dtype == ml_dtypes.bfloat16
    exact_E = np.float64(x).ravel()
    random_trees.assert_near(np.asarray(got), exact_E, 1e-5)


@pytest.mark.parametrize(
  "name",
  [n for n, m in METHODS.items() if m.on_tensors and m.weights != "none"],
)
def test_a_tree_of_weight_zero_spreads_nothing(name):
  same, _, base = _case(0, METHODS[name], count=2)
  diverged = jax.tree.map(lambda x: x * np.float32(np.inf), same[1])
  found = _merged(name, [same[0], diverged], [1.0, 0.0], base)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.parametrize("name", [n for n in ON_TENSORS if METHODS[n].prepare])
def test_draws_are_those_of_the_seed(name):
  same, weights, base = _case(0, METHODS[name])
  first, again, other = (
    _merged(name, same, weights, base, seed=seed)["table"] for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)
