"""SLERP and the Karcher mean: hand cases and what defines them."""

import jax
import numpy as np
import pytest

from jaxmerge.errors import InputError
from tests.merging.fixtures import stacked, unstacked
from tests.merging.in_memory import merge_trees


def _numpy_slerp(a, b, t):
  cosine = np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
  angle = np.arccos(cosine)
  arc = np.sin((1 - t) * angle) * a + np.sin(t * angle) * b
  return arc / np.sin(angle)


def test_slerp_by_hand():
  a, b = {"x": np.float32([1, 0])}, {"x": np.float32([0, 1])}
  half = np.sqrt(0.5)
  found = merge_trees("slerp", [a, b], [0.5, 0.5])["x"]
  np.testing.assert_allclose(found, [half, half], rtol=1e-6)
  third = merge_trees("slerp", [a, b], [2, 1])["x"]
  np.testing.assert_allclose(
    third, [np.cos(np.pi / 6), np.sin(np.pi / 6)], rtol=1e-6
  )


def test_slerp_keeps_a_common_length():
  a, b = (
    tree["norm"] / np.linalg.norm(tree["norm"])
    for tree in (stacked(0), stacked(1))
  )
  for t in (0.0, 0.3, 1.0):
    found = merge_trees("slerp", [{"x": a}, {"x": b}], [1 - t, t])["x"]
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


def test_slerp_of_parallel_and_zero_tensors_is_the_line():
  a = {"x": np.float32([1, 2, 3])}
  for other in ([2.0, 4.0, 6.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]):
    b = {"x": np.float32(other)}
    found = merge_trees("slerp", [a, b], [0.25, 0.75])["x"]
    np.testing.assert_allclose(found, 0.25 * a["x"] + 0.75 * b["x"], atol=1e-6)


def test_slerp_acts_on_each_layer_of_a_stack():
  a, b = stacked(0), stacked(1)
  found = merge_trees("slerp", [a, b], [0.3, 0.7])
  alone = merge_trees("slerp", [unstacked(a), unstacked(b)], [0.3, 0.7])
  for name, leaf in unstacked(found).items():
    np.testing.assert_allclose(leaf, alone[name], rtol=1e-5, atol=1e-6)
  for i in range(3):
    kernels = (tree["layers"]["kernel"][i] for tree in (a, b))
    expected = _numpy_slerp(*kernels, 0.7)
    np.testing.assert_allclose(
      found["layers"]["kernel"][i], expected, rtol=1e-4, atol=1e-5
    )


def test_the_karcher_mean_of_two_is_slerp_of_equal_lengths():
  a, b = (
    {"x": tree["norm"] / np.linalg.norm(tree["norm"])}
    for tree in (stacked(0), stacked(1))
  )
  found = merge_trees("karcher", [a, b], [0.3, 0.7])["x"]
  by_slerp = merge_trees("slerp", [a, b], [0.3, 0.7])["x"]
  np.testing.assert_allclose(found, by_slerp, atol=1e-5)


def test_at_the_karcher_mean_the_logarithms_cancel():
  trees = [stacked(seed) for seed in range(4)]
  weights = np.array([0.4, 0.3, 0.2, 0.1])
  found = merge_trees("karcher", trees, weights.tolist())
  for i in range(3):
    points = [tree["layers"]["kernel"][i].ravel() for tree in trees]
    lengths = np.array([np.linalg.norm(p) for p in points])
    mean = np.asarray(found["layers"]["kernel"][i], np.float64).ravel()
    assert np.linalg.norm(mean) == pytest.approx(weights @ lengths, rel=1e-5)
    mean /= np.linalg.norm(mean)
    total = np.zeros_like(mean)
    for w, point, length in zip(weights, points, lengths):
      unit = point / length
      angle = np.arccos(unit @ mean)
      total += w * angle / np.sin(angle) * (unit - np.cos(angle) * mean)
    assert np.linalg.norm(total) < 1e-5


def test_the_karcher_mean_of_one_direction_is_it():
  tree = stacked(0)
  longer = jax.tree.map(lambda x: 3 * x, tree)
  found = merge_trees("karcher", [tree, longer], [0.5, 0.5])
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, 2 * y, rtol=1e-4, atol=1e-5),
    found,
    tree,
  )


@pytest.mark.parametrize(
  ("trees", "weights"),
  [
    ([stacked(0)], [1.0]),
    ([stacked(0), stacked(1)], [1.0]),
    ([stacked(0), stacked(1, 4)], [1, 1]),
  ],
)
def test_bad_arguments(trees, weights):
  with pytest.raises(InputError):
    merge_trees("slerp", trees, weights)
  if len(trees) > 1:
    with pytest.raises(InputError):
      merge_trees("karcher", trees, weights)
  with pytest.raises(InputError, match=">= 0"):
    merge_trees("karcher", [stacked(0), stacked(1)], [2.0, -1.0])
