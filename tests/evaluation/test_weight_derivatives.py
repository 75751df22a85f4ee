"""What MergedLoss.measured tells of a merge of trees anywhere."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxmerge.evaluation.merged_loss import MergedLoss
from jaxmerge.evaluation.weight_derivatives import (
  first_of_clusters,
  planned_bytes,
)
from jaxmerge.formats.lazy_tensors import array_leaf
from jaxmerge.merging import chunks
from jaxmerge.merging.groups import groups_of
from jaxmerge.merging.resident import Trees, TreesInStorage
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import named_leaves, shardings
from tests.evaluation.test_objective import CONFIG, _heldout
from tests.helpers import random_params

K = 3
WEIGHTS = [[0.2, 0.5, 0.3], [0.6, -0.2, 0.6], [0.3, 0.3, 0.4]]


@pytest.fixture(scope="module")
def trees():
  """As near each other as checkpoints of a run are."""
  base, *others = (random_params(CONFIG, s) for s in range(K + 1))
  return [
    jax.tree.map(lambda x, y, k=k: x + (0.1 + 0.05 * k) * y, base, other)
    for k, other in enumerate(others)
  ]


def merged_of(trees, resident=Trees):
  groups = groups_of(trees[0], "1")
  return MergedLoss(resident(trees), _heldout(), groups)


def in_storage(trees):
  dtype = np.dtype(np.float32)
  stored = []
  for k, tree in enumerate(trees):
    leaves = {
      name: array_leaf(np.asarray(leaf))
      for name, leaf in named_leaves(tree).items()
    }
    stored.append(
      chunks.Stored(str(k), leaves, None, dict.fromkeys(leaves, dtype))
    )
  _, abstract = abstract_decoder(CONFIG)
  return TreesInStorage(stored, shardings(abstract, make_mesh()))


@pytest.fixture(scope="module")
def measured(trees):
  merged = merged_of(trees)
  spent = merged.tokens
  found = merged.measured(WEIGHTS, curvature=True)
  return merged, found, merged.tokens - spent


def test_the_score_is_the_plain_one(measured):
  merged, found, spent = measured
  plain = merged.score(WEIGHTS)
  np.testing.assert_array_equal(found.score.values_N, plain.values_N)
  targets = plain.weights_N.sum()
  of_curvature = plain.weights_N[::2].sum()  # two sequences a document
  assert spent == targets * (1 + 5) + 6 * 2 * of_curvature


def test_gradients_are_slopes_of_the_scores(measured):
  merged, found, _ = measured
  step = 0.005
  for g in range(len(WEIGHTS)):
    for k in range(K - 1):
      values = []
      for sign in (1, -1):
        moved = np.array(WEIGHTS)
        moved[g, [k, -1]] += sign * step, -sign * step
        values.append(merged.score(moved.tolist()).values_N)
      slopes_N = (values[0] - values[1]) / (2 * step)
      gradient_N = found.gradients_NxGxK[:, g, k]
      scale = np.abs(found.gradients_NxGxK).max()
      np.testing.assert_allclose(gradient_N, slopes_N, atol=2e-3 * scale)
  assert not found.gradients_NxGxK[:, :, -1].any()


def test_gradients_sum_to_that_of_the_whole(measured):
  merged, found, _ = measured
  score, gradient_GxK, _ = merged.differentiated(WEIGHTS)
  mean_GxK = found.gradients_NxGxK.sum(axis=0) / score.weights_N.sum()
  np.testing.assert_allclose(mean_GxK, gradient_GxK, rtol=1e-4, atol=1e-6)


def test_curvature_has_no_part_of_the_last_checkpoint(measured):
  _, found, _ = measured
  matrix = found.curvature.reshape(3, K, 3, K)
  assert not matrix[:, -1].any()
  assert not matrix[..., -1].any()
  inner = matrix[:, :-1, :, :-1].reshape(6, 6)
  np.testing.assert_allclose(inner, inner.T, rtol=1e-6)
  assert np.linalg.eigvalsh(inner).min() > -1e-6
  assert np.diag(inner).min() > 0


def test_temporaries_are_less_than_the_differences():
  """Six more checkpoints take less than two trees more, of sixteen layers."""
  config = dataclasses.replace(CONFIG, num_hidden_layers=16, hidden_size=64)
  graph, shapes = abstract_decoder(config)
  mesh = make_mesh()
  shapes = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    shardings(shapes, mesh),
  )
  few, many = (
    planned_bytes(graph, mesh, shapes, count, groups_of(shapes, "2"), 8, 1)
    for count in (3, 9)
  )
  tree = sum(4 * x.size for x in jax.tree.leaves(shapes))
  assert 0 < few < many < few + 2 * tree


def test_curvature_is_of_the_first_sequence_of_some_documents():
  assert first_of_clusters(np.array([2, 2, 0, 1, 0]), 9) == [0, 2, 3]
  assert first_of_clusters(np.array([2, 2, 0, 1, 0]), 2) == [0, 2]


def test_trees_in_storage_give_the_same(trees, measured):
  _, exact, _ = measured
  merged = merged_of(trees, in_storage)
  spent = merged.tokens
  found = merged.measured(WEIGHTS, curvature=True)
  for mine, right in zip(found[1:], exact[1:]):
    assert np.abs(mine - right).max() < 0.03 * np.abs(right).max()
  targets, rows = found.score.weights_N, slice(None, None, 2)
  passes = 1 + 7 * (1 + targets[rows].sum() / targets.sum())
  assert merged.tokens - spent == pytest.approx(passes * targets.sum())
  alone = merged.measured(WEIGHTS, curvature=False)
  assert alone.curvature is None
  np.testing.assert_array_equal(alone.gradients_NxGxK, found.gradients_NxGxK)
