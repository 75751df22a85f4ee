"""SLERP and the Karcher mean: what holds for any trees."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.merging.in_memory import merge_trees
from tests.properties import random_trees
from tests.properties.random_trees import SEEDS, assert_close, laws

PART = st.floats(0, 1, width=32)


def _tree(rng, shift=0.0):
  kernel = random_trees.normal(rng, (3, 2, 4))
  return {
    "layers": {"kernel": kernel + np.float32(shift)},
    "norm": random_trees.normal(rng, (7,)) + np.float32(shift),
  }


def _pair(seed, shift=0.0):
  rng = np.random.default_rng(seed)
  return [_tree(rng, shift) for _ in range(2)]


def _slices(tree):
  return [*(x.ravel() for x in np.asarray(tree["layers"]["kernel"]))] + [
    np.asarray(tree["norm"])
  ]


def _lengths(tree):
  return [np.linalg.norm(np.float64(x)) for x in _slices(tree)]


def _to_length(tree, length):
  """With every slice of that length."""
  kernel = tree["layers"]["kernel"]
  axes = tuple(range(1, kernel.ndim))
  size = np.sqrt(np.square(kernel).sum(axes, keepdims=True))
  return {
    "layers": {"kernel": kernel * np.float32(length) / size},
    "norm": tree["norm"] * np.float32(length) / np.linalg.norm(tree["norm"]),
  }


@laws
@given(SEEDS, PART)
def test_slerp_is_symmetric(seed, t):
  a, b = _pair(seed)
  assert_close(
    merge_trees("slerp", [a, b], [1 - t, t]),
    merge_trees("slerp", [b, a], [t, 1 - t]),
    1e-5,
  )


@laws
@given(SEEDS)
def test_slerp_ends_at_its_trees(seed):
  a, b = _pair(seed)
  assert_close(merge_trees("slerp", [a, b], [1, 0]), a)
  assert_close(merge_trees("slerp", [a, b], [0, 3]), b)


@laws
@given(SEEDS, PART, st.floats(0.1, 50))
def test_slerp_keeps_the_length_of_every_slice(seed, t, length):
  pair = [_to_length(tree, length) for tree in _pair(seed)]
  found = merge_trees("slerp", pair, [1 - t, t])
  np.testing.assert_allclose(_lengths(found), length, rtol=2e-5)


@laws
@given(SEEDS, PART)
def test_slerp_is_at_that_part_of_the_angle(seed, t):
  a, b = (_to_length(tree, 1) for tree in _pair(seed))
  found = merge_trees("slerp", [a, b], [1 - t, t])
  for x, y, z in zip(*map(_slices, (a, b, found))):
    whole, part = (np.arccos(np.clip(x @ other, -1, 1)) for other in (y, z))
    assert part == pytest.approx(t * whole, abs=2e-3)


@laws
@given(SEEDS)
def test_the_karcher_mean_of_two_is_half_of_the_arc(seed):
  pair = [_to_length(tree, 2) for tree in _pair(seed, 0.5)]
  assert_close(
    merge_trees("karcher", pair, [1, 1]),
    merge_trees("slerp", pair, [1, 1]),
    1e-5,
  )


@laws
@given(SEEDS, st.floats(0.05, 1))
def test_the_karcher_mean_of_equal_trees_is_that_tree(seed, w):
  tree = _tree(np.random.default_rng(seed))
  found = merge_trees("karcher", [tree] * 3, [w, 1.0, 2.0])
  assert_close(found, tree, 2e-6)


@laws
@given(SEEDS, st.permutations(range(3)))
def test_the_karcher_mean_has_no_order(seed, order):
  rng = np.random.default_rng(seed)
  same = [_tree(rng, 1.5) for _ in range(3)]
  weights = rng.dirichlet(np.full(3, 4.0))
  found = merge_trees("karcher", [same[k] for k in order], weights[list(order)])
  assert_close(found, merge_trees("karcher", same, weights), 1e-5)


@laws
@given(SEEDS, st.integers(-10, 10))
def test_lengths_go_through_and_directions_do_not_change(seed, power):
  a, b = _pair(seed, 0.5)
  factor = np.float32(2.0**power)
  larger = [jax.tree.map(lambda x: factor * x, tree) for tree in (a, b)]
  for method in ("slerp", "karcher"):
    plain = jax.tree.map(
      lambda x: factor * x, merge_trees(method, [a, b], [0.3, 0.7])
    )
    assert_close(merge_trees(method, larger, [0.3, 0.7]), plain, 1e-5)
