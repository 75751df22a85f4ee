"""Task arithmetic, TIES, DARE, Model Stock: hand cases and invariants."""

import jax
import numpy as np
import pytest

from jaxmerge.errors import InputError
from jaxmerge.merging import task_vectors
from jaxmerge.merging.model_stock import model_stock


def _x(*values):
  return {"x": np.float32(values)}


def _tree(seed):
  rng = np.random.default_rng(seed)
  return {
    "layers": {"kernel": rng.normal(size=(3, 4, 5)).astype(np.float32)},
    "norm": rng.normal(size=6).astype(np.float32),
  }


def _unstacked(tree):
  kernel = tree["layers"]["kernel"]
  return {**{f"l{i}": k for i, k in enumerate(kernel)}, "norm": tree["norm"]}


def _close(a, b, atol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_task_arithmetic_and_the_residual_by_hand():
  base, a, b = _x(1, 1), _x(2, 0), _x(1, 4)
  found = task_vectors.task_arithmetic(base, [a, b], [0.5, 2.0])
  np.testing.assert_allclose(found["x"], [1.5, 6.5])
  residual = task_vectors.task_arithmetic(base, [a, b], [1.0, 1.0])
  np.testing.assert_allclose(residual["x"], a["x"] + b["x"] - base["x"])


def test_ties_by_hand():
  base = _x(0, 0, 0, 0, 0)
  a = _x(5, -4, 3, 0.1, 0)
  b = _x(-1, -2, 6, 0.2, 0)
  # Three of five are kept: 5 -4 3 and -1 -2 6. Signs: + - +.
  found = task_vectors.ties(base, [a, b], [1, 1], density=0.6, scale=1.0)
  np.testing.assert_allclose(found["x"], [5, -3, 4.5, 0, 0])
  half = task_vectors.ties(base, [a, b], [1, 1], density=0.6, scale=0.5)
  np.testing.assert_allclose(half["x"], [2.5, -1.5, 2.25, 0, 0])
  # Weighted, the second one's -1 outvotes 5.
  heavy = task_vectors.ties(base, [a, b], [1, 9], density=0.6, scale=1.0)
  np.testing.assert_allclose(heavy["x"], [-1, -2.2, 5.7, 0, 0], rtol=1e-6)


def test_ties_of_one_task_whole_is_that_task():
  base, tree = _tree(0), _tree(1)
  _close(task_vectors.ties(base, [tree], [1], density=1.0, scale=1.0), tree)


def test_ties_trims_each_layer_of_a_stack():
  base, a, b = (_tree(seed) for seed in range(3))
  found = task_vectors.ties(base, [a, b], [1, 2], density=0.3, scale=1.0)
  alone = task_vectors.ties(
    _unstacked(base),
    [_unstacked(a), _unstacked(b)],
    [1, 2],
    density=0.3,
    scale=1.0,
  )
  _close(_unstacked(found), alone)


def test_dropped_keeps_the_mean_and_the_share():
  base = {"x": np.zeros((200, 200), np.float32)}
  tree = {"x": np.ones((200, 200), np.float32)}
  (found,) = task_vectors.dropped(base, [tree], drop=0.9, seed=0)
  values = np.unique(found["x"])
  np.testing.assert_allclose(values, [0, 10], rtol=1e-6)
  assert np.mean(found["x"]) == pytest.approx(1, abs=0.05)


def test_dropped_is_seeded_and_differs_between_trees():
  base, tree = _tree(0), _tree(1)
  first, second = task_vectors.dropped(base, [tree, tree], drop=0.5, seed=0)
  again, _ = task_vectors.dropped(base, [tree, tree], drop=0.5, seed=0)
  other, _ = task_vectors.dropped(base, [tree, tree], drop=0.5, seed=1)
  _close(first, again, atol=0)
  for different in (second, other):
    kernels = (t["layers"]["kernel"] for t in (first, different))
    assert not np.array_equal(*kernels)
  (whole,) = task_vectors.dropped(base, [tree], drop=0.0, seed=0)
  _close(whole, tree)


def test_model_stock_by_hand():
  base = _x(0, 0)
  # Orthogonal task vectors: cos = 0, stay; equal ones: cos = 1, go all the way.
  np.testing.assert_allclose(
    model_stock(base, [_x(1, 0), _x(0, 1)])["x"], [0, 0], atol=1e-7
  )
  np.testing.assert_allclose(
    model_stock(base, [_x(1, 2), _x(1, 2)])["x"], [1, 2], rtol=1e-6
  )
  # At 60 degrees t = 2 * 0.5 / 1.5 = 2/3 of the way to the mean.
  a, b = _x(1, 0), _x(0.5, np.sqrt(0.75))
  mean = (a["x"] + b["x"]) / 2
  np.testing.assert_allclose(
    model_stock(base, [a, b])["x"], 2 / 3 * mean, rtol=1e-6
  )


def test_model_stock_of_equal_angles_projects_as_the_others_do():
  """Its dot product with each end is that of the ends with each other."""
  rng = np.random.default_rng(0)
  q, _ = np.linalg.qr(rng.normal(size=(6, 4)))
  ends = [_x(*(q[:, 0] + 0.7 * row)) for row in q[:, 1:].T]
  found = model_stock(_x(*np.zeros(6)), ends)["x"]
  between = ends[0]["x"] @ ends[1]["x"]
  for end in ends:
    assert end["x"] @ found == pytest.approx(between, rel=1e-5)


def test_model_stock_acts_on_each_layer_of_a_stack():
  base, a, b = (_tree(seed) for seed in range(3))
  shared = _tree(9)
  near = [
    jax.tree.map(lambda x, s, n: x + s + 0.3 * n, base, shared, t)
    for t in (a, b)
  ]
  found = model_stock(base, near)
  alone = model_stock(_unstacked(base), [_unstacked(t) for t in near])
  _close(_unstacked(found), alone)


def test_bad_arguments():
  base, tree = _tree(0), _tree(1)
  with pytest.raises(InputError, match="1 trees but 2 weights"):
    task_vectors.task_arithmetic(base, [tree], [1, 1])
  with pytest.raises(InputError, match="not finite"):
    task_vectors.task_arithmetic(base, [tree], [np.nan])
  with pytest.raises(InputError, match="density"):
    task_vectors.ties(base, [tree], [1], density=0.0, scale=1.0)
  with pytest.raises(InputError, match="drop"):
    task_vectors.dropped(base, [tree], drop=1.0, seed=0)
  with pytest.raises(InputError, match="two trees or more"):
    model_stock(base, [tree])
  with pytest.raises(InputError):
    model_stock(base, [tree, _x(1)])
