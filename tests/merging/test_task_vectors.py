"""Task arithmetic, TIES, DARE, Model Stock: hand cases and invariants."""

import jax
import numpy as np
import pytest

from jaxmerge.errors import InputError
from tests.merging.fixtures import stacked, unstacked
from tests.merging.in_memory import merge_trees


def _ties(base, trees, weights, **knobs):
  return merge_trees("ties", trees, weights, base=base, **knobs)


def _stock(base, trees):
  return merge_trees("model_stock", trees, base=base)


def _x(*values):
  return {"x": np.float32(values)}


def _close(a, b, atol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_task_arithmetic_and_the_residual_by_hand():
  base, a, b = _x(1, 1), _x(2, 0), _x(1, 4)
  found = merge_trees("task_arithmetic", [a, b], [0.5, 2.0], base=base)
  np.testing.assert_allclose(found["x"], [1.5, 6.5])
  residual = merge_trees("task_arithmetic", [a, b], [1.0, 1.0], base=base)
  np.testing.assert_allclose(residual["x"], a["x"] + b["x"] - base["x"])


def test_ties_by_hand():
  base = _x(0, 0, 0, 0, 0)
  a = _x(5, -4, 3, 0.1, 0)
  b = _x(-1, -2, 6, 0.2, 0)
  # Three of five are kept: 5 -4 3 and -1 -2 6. Signs: + - +.
  found = _ties(base, [a, b], [1, 1], density=0.6)
  np.testing.assert_allclose(found["x"], [5, -3, 4.5, 0, 0])
  half = _ties(base, [a, b], [1, 1], density=0.6, scale=0.5)
  np.testing.assert_allclose(half["x"], [2.5, -1.5, 2.25, 0, 0])
  # Weighted, the second one's -1 outvotes 5.
  heavy = _ties(base, [a, b], [1, 9], density=0.6)
  np.testing.assert_allclose(heavy["x"], [-1, -2.2, 5.7, 0, 0], rtol=1e-6)


def test_ties_with_a_density_for_each_input():
  base, a, b = _x(0, 0, 0, 0), _x(5, -4, 3, 1), _x(1, -2, 6, 3)
  # Half of a is kept, a quarter of b.
  found = _ties(base, [a, b], [1, 1], density=(0.5, 0.25))
  np.testing.assert_allclose(found["x"], [5, -4, 6, 0])
  same = _ties(base, [a, b], [1, 1], density=(0.5, 0.5))
  _close(same, _ties(base, [a, b], [1, 1], density=0.5), atol=0)
  # The density stays that of its input where another weighs nothing.
  alone = _ties(base, [a, b], [0, 1], density=(1.0, 0.25))
  np.testing.assert_allclose(alone["x"], [0, 0, 6, 0])


def test_dare_with_a_drop_rate_for_each_input():
  base, a, b = _x(*[0] * 400), _x(*[1] * 400), _x(*[2] * 400)

  def dare(rate, weights):
    knobs = {"base": base, "drop_rate": rate}
    return merge_trees("dare", [a, b], weights, **knobs)["x"]

  both = dare((0.0, 0.5), [1, 1])
  assert set(both.tolist()) == {1.0, 5.0}
  np.testing.assert_array_equal(dare((0.5, 0.5), [1, 1]), dare(0.5, [1, 1]))


def test_ties_of_one_task_whole_is_that_task():
  base, tree = stacked(0), stacked(1)
  _close(_ties(base, [tree], [1], density=1.0), tree)


def test_ties_trims_each_layer_of_a_stack():
  base, a, b = (stacked(seed) for seed in range(3))
  found = _ties(base, [a, b], [1, 2], density=0.3)
  alone = _ties(
    unstacked(base), [unstacked(a), unstacked(b)], [1, 2], density=0.3
  )
  _close(unstacked(found), alone)


def test_dropped_keeps_the_mean_and_the_share():
  base = {"x": np.zeros((200, 200), np.float32)}
  tree = {"x": np.ones((200, 200), np.float32)}
  found = merge_trees("dare", [tree], base=base)
  values = np.unique(found["x"])
  np.testing.assert_allclose(values, [0, 10], rtol=1e-6)
  assert np.mean(found["x"]) == pytest.approx(1, abs=0.05)


def test_dropped_is_seeded_and_differs_between_trees():
  base, tree = stacked(0), stacked(1)

  def dropped(trees, seed=0, drop_rate=0.5):
    """The task vector of the one that differs from the base."""
    knobs = {"seed": seed, "drop_rate": drop_rate}
    return merge_trees("dare", trees, base=base, **knobs)

  first, second = dropped([tree, base]), dropped([base, tree])
  again, other = dropped([tree, base]), dropped([tree, base], seed=1)
  _close(first, again, atol=0)
  for different in (second, other):
    kernels = (t["layers"]["kernel"] for t in (first, different))
    assert not np.array_equal(*kernels)
  _close(dropped([tree], drop_rate=0.0), tree)


def test_model_stock_by_hand():
  base = _x(0, 0)
  # Orthogonal task vectors: cos = 0, stay; equal ones: cos = 1, go all the way.
  np.testing.assert_allclose(
    _stock(base, [_x(1, 0), _x(0, 1)])["x"], [0, 0], atol=1e-7
  )
  np.testing.assert_allclose(
    _stock(base, [_x(1, 2), _x(1, 2)])["x"], [1, 2], rtol=1e-6
  )
  # At 60 degrees t = 2 * 0.5 / 1.5 = 2/3 of the way to the mean.
  a, b = _x(1, 0), _x(0.5, np.sqrt(0.75))
  mean = (a["x"] + b["x"]) / 2
  np.testing.assert_allclose(_stock(base, [a, b])["x"], 2 / 3 * mean, rtol=1e-6)


def test_model_stock_of_equal_angles_projects_as_the_others_do():
  """Its dot product with each end is that of the ends with each other."""
  rng = np.random.default_rng(0)
  q, _ = np.linalg.qr(rng.normal(size=(6, 4)))
  ends = [_x(*(q[:, 0] + 0.7 * row)) for row in q[:, 1:].T]
  found = _stock(_x(*np.zeros(6)), ends)["x"]
  between = ends[0]["x"] @ ends[1]["x"]
  for end in ends:
    assert end["x"] @ found == pytest.approx(between, rel=1e-5)


def test_model_stock_acts_on_each_layer_of_a_stack():
  base, a, b = (stacked(seed) for seed in range(3))
  shared = stacked(9)
  near = [
    jax.tree.map(lambda x, s, n: x + s + 0.3 * n, base, shared, t)
    for t in (a, b)
  ]
  found = _stock(base, near)
  alone = _stock(unstacked(base), [unstacked(t) for t in near])
  _close(unstacked(found), alone)


def test_bad_arguments():
  base, tree = stacked(0), stacked(1)
  with pytest.raises(InputError, match="1 trees but 2 weights"):
    merge_trees("task_arithmetic", [tree], [1, 1], base=base)
  with pytest.raises(InputError, match="not finite"):
    merge_trees("task_arithmetic", [tree], [np.nan], base=base)
  with pytest.raises(InputError, match="density"):
    _ties(base, [tree], [1], density=0.0)
  with pytest.raises(InputError, match="drop"):
    merge_trees("dare", [tree], base=base, drop_rate=1.0)
  with pytest.raises(InputError, match="takes 2 or more inputs"):
    _stock(base, [tree])
  with pytest.raises(InputError):
    _stock(base, [tree, _x(1)])
