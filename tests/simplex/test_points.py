import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from jaxmerge.errors import InputError
from jaxmerge.simplex.bounds import (
  Bounds,
  normalised,
  unit_from_weights,
  weights_from_unit,
)
from jaxmerge.simplex.points import candidates, grid, project, vertices

_ALPHAS = st.floats(0, 0.99)
_RAW = st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(
  lambda values: sum(values) > 1e-3
)


@hypothesis.given(_RAW, _ALPHAS, st.floats(0, 1))
def test_weights_of_a_unit_point_and_back(raw, alpha, beta):
  unit = normalised(raw)
  bounds = Bounds(alpha, beta)
  weights = weights_from_unit(unit, bounds)
  assert all(type(w) is float for w in weights)
  assert abs(math.fsum(weights) - 1) < 1e-12
  assert min(weights) >= -beta / (len(raw) - 1) - 1e-12
  assert alpha - 1e-12 <= weights[-1] <= 1 + beta + 1e-12
  np.testing.assert_allclose(
    unit_from_weights(weights, bounds), unit, atol=1e-10
  )


@hypothesis.given(st.floats(0, 0.9999999), st.floats(0, 1), st.integers(2, 6))
def test_the_last_checkpoint_alone_is_exactly_that(alpha, beta, count):
  bounds = Bounds(alpha, beta)
  alone = [0.0] * (count - 1) + [1.0]
  unit = unit_from_weights(alone, bounds)
  assert weights_from_unit(unit, bounds) == alone


def test_the_vertices_are_the_ends_of_the_reach():
  bounds = Bounds(0.2, 0.3)
  weights = weights_from_unit([0, 0, 1], bounds)
  assert weights == pytest.approx([-0.15, -0.15, 1.3])
  weights = weights_from_unit([1, 0, 0], bounds)
  assert weights == pytest.approx([0.95, -0.15, 0.2])
  assert weights_from_unit([1, 0], Bounds(0.3))[-1] == 0.3


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_a_reach_out_of_range_is_refused(value):
  with pytest.raises(InputError, match=r"alpha must be in \[0, 1\)"):
    weights_from_unit([0.5, 0.5], Bounds(value))
  with pytest.raises(InputError, match=r"beta must be in \[0, 1\]"):
    weights_from_unit([0.5, 0.5], Bounds(0.0, value))


@pytest.mark.parametrize("point", [[0.5, 0.6], [-0.1, 1.1], []])
def test_points_off_the_simplex_are_refused(point):
  with pytest.raises(InputError):
    weights_from_unit(point, Bounds(0.1))
  with pytest.raises(InputError):
    unit_from_weights(point, Bounds(0.1))


def test_a_last_weight_below_alpha_is_refused():
  with pytest.raises(InputError, match="at least alpha"):
    unit_from_weights([0.8, 0.2], Bounds(0.3))


def test_vertices_start_with_the_last_checkpoint():
  np.testing.assert_array_equal(vertices(2), [[0, 1], [1, 0]])
  np.testing.assert_array_equal(vertices(3), [[0, 0, 1], [0, 1, 0], [1, 0, 0]])


def _bisected_projection(point_K: np.ndarray) -> np.ndarray:
  low, high = point_K.min() - 1, point_K.max()
  for _ in range(200):
    middle = (low + high) / 2
    if np.maximum(point_K - middle, 0).sum() > 1:
      low = middle
    else:
      high = middle
  return np.maximum(point_K - low, 0)


def test_projection_is_the_nearest_point_of_the_simplex():
  points = np.random.default_rng(0).normal(size=(50, 5)) * 2
  with jax.enable_x64(True):
    projected = np.asarray(jax.jit(project)(points))
  for point_K, projected_K in zip(points, projected, strict=True):
    np.testing.assert_allclose(
      projected_K, _bisected_projection(point_K), atol=1e-12
    )
  inside = candidates(4, 16, 0)
  with jax.enable_x64(True):
    np.testing.assert_allclose(project(inside), inside, atol=1e-15)


def test_candidates_cover_the_simplex_evenly_and_depend_on_the_seed():
  points_CxK = candidates(4, 512, seed=3)
  assert points_CxK.min() >= 0
  np.testing.assert_allclose(points_CxK.sum(-1), 1, atol=1e-12)
  # Uniform on the simplex: every coordinate has mean 1/4, P(v < x) known.
  np.testing.assert_allclose(points_CxK.mean(0), 0.25, atol=0.01)
  np.testing.assert_allclose((points_CxK < 0.2).mean(0), 1 - 0.8**3, atol=0.02)
  np.testing.assert_array_equal(points_CxK, candidates(4, 512, 3))
  assert np.abs(points_CxK - candidates(4, 512, 4)).max() > 0.01


def test_grid_of_two_is_a_line_in_lambda():
  np.testing.assert_allclose(grid(2, 5)[:, -1], np.linspace(0, 1, 5), atol=0)


@pytest.mark.parametrize(
  ("num_weights", "num_points"),
  itertools.product([3, 4, 6], [1, 6, 10, 20, 21, 56]),
)
def test_grid_is_the_largest_lattice_that_fits(num_weights, num_points):
  weights_PxK = grid(num_weights, num_points)
  np.testing.assert_allclose(weights_PxK.sum(-1), 1, atol=1e-12)
  assert weights_PxK.min() >= 0
  assert len(np.unique(weights_PxK, axis=0)) == len(weights_PxK)
  size = {q: math.comb(q + num_weights - 1, num_weights - 1) for q in range(60)}
  q = max([1] + [q for q in size if size[q] <= num_points])
  assert len(weights_PxK) == size[q]
  np.testing.assert_allclose(weights_PxK * q, np.round(weights_PxK * q))
  for vertex in np.eye(num_weights):
    assert any(np.array_equal(vertex, row) for row in weights_PxK)
