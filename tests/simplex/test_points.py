import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import scipy.optimize

from jaxmerge.errors import InputError
from jaxmerge.simplex.bounds import (
  Bounds,
  normalised,
  unit_from_weights,
  weights_from_unit,
)
from jaxmerge.simplex.points import candidates, grid, project, vertices, within

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


@hypothesis.given(_RAW)
def test_negative_weights_and_back(raw):
  count = len(raw)
  bounds = Bounds(negative=True)
  # Towards the centre until no entry is beyond the cap.
  unit = np.array(normalised(raw))
  cap = 3 / (count + 1)
  part = min(1.0, (cap - 1 / count) / max(unit.max() - 1 / count, 1e-12))
  unit = normalised(1 / count + part * (unit - 1 / count))
  weights = weights_from_unit(unit, bounds)
  assert abs(math.fsum(weights) - 1) < 1e-12
  assert min(weights) >= -1 - 1e-12
  assert max(weights) <= 2 + 1e-12
  np.testing.assert_allclose(
    unit_from_weights(weights, bounds), unit, atol=1e-12
  )


@pytest.mark.parametrize("count", [2, 3, 6, 24])
def test_named_weights_are_exactly_themselves_among_negative_ones(count):
  bounds = Bounds(negative=True)
  for alone in np.eye(count).tolist():
    assert weights_from_unit(unit_from_weights(alone, bounds), bounds) == alone
  mean = [1 / count] * count
  unit = unit_from_weights(mean, bounds)
  assert weights_from_unit(unit, bounds) == pytest.approx(mean, abs=1e-15)
  assert unit_from_weights([2, -1] + [0] * (count - 2), bounds)[
    0
  ] == pytest.approx(3 / (count + 1), abs=1e-15)


def test_negative_weights_beyond_their_bounds_are_refused():
  bounds = Bounds(negative=True)
  with pytest.raises(InputError, match=r"weights must be >= -1, <= 2 and sum"):
    unit_from_weights([2.1, -1.1], bounds)
  with pytest.raises(InputError, match=r"weights must be >= -1, <= 2 and sum"):
    unit_from_weights([2.1, -0.5, -0.6], bounds)
  with pytest.raises(InputError, match=r"a unit point must be >= 0, <= 0.75"):
    weights_from_unit([0.8, 0.1, 0.1], bounds)
  for other in (Bounds(0.1, 0.0, True), Bounds(0.0, 0.1, True)):
    with pytest.raises(InputError, match="negative weights want alpha=0 and"):
      weights_from_unit([0.5, 0.5], other)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(
  "bounds", [Bounds(), Bounds(0.2), Bounds(0.1, 0.4), Bounds(negative=True)]
)
def test_the_region_holds_what_the_unit_points_reach(bounds, count):
  lowest_K, highest = bounds.region(count)
  # The vertices of {lowest <= w <= highest, sum 1}, by brute force.
  ends = []
  for free in range(count):
    others = [k for k in range(count) if k != free]
    for at_highest in itertools.product([False, True], repeat=count - 1):
      weights = np.array(lowest_K)
      for k, is_high in zip(others, at_highest):
        weights[k] = highest if is_high else lowest_K[k]
      weights[free] += 1 - weights.sum()
      if lowest_K[free] - 1e-12 <= weights[free] <= highest + 1e-12:
        ends.append(weights.tolist())
  assert ends
  for weights in ends:
    unit = unit_from_weights(weights, bounds)
    np.testing.assert_allclose(
      weights_from_unit(unit, bounds), weights, atol=1e-12
    )


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


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  st.integers(2, 6).flatmap(
    lambda count: st.lists(
      st.floats(-5, 5).map(lambda x: round(x, 3)),
      min_size=count,
      max_size=count,
    )
  )
)
def test_projection_within_bounds_solves_the_quadratic_programme(point):
  point_K = np.array(point)
  with jax.enable_x64(True):
    found_K = np.asarray(project(point_K, 1, (-1.0, 2.0)))
  assert found_K.sum() == pytest.approx(1, abs=1e-12)
  assert found_K.min() >= -1
  assert found_K.max() <= 2
  solved = scipy.optimize.minimize(
    lambda x: ((x - point_K) ** 2).sum(),
    np.full(len(point_K), 1 / len(point_K)),
    jac=lambda x: 2 * (x - point_K),
    method="SLSQP",
    bounds=[(-1, 2)] * len(point_K),
    constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
    options={"ftol": 1e-14, "maxiter": 500},
  )
  np.testing.assert_allclose(found_K, solved.x, atol=1e-6)
  # Any feasible point is at an obtuse angle: exact where SLSQP rounds.
  for i, j in itertools.permutations(range(len(point_K)), 2):
    room = min(2 - found_K[i], found_K[j] + 1)
    gain = (point_K[i] - found_K[i]) - (point_K[j] - found_K[j])
    assert room < 1e-12 or gain < 1e-12


def test_projection_within_bounds_is_of_each_group():
  points = np.random.default_rng(1).normal(size=(7, 2, 3)) * 3
  with jax.enable_x64(True):
    project_all = jax.jit(project, static_argnums=(1, 2))
    found = project_all(points.reshape(7, 6), 2, (-1.0, 2.0))
    alone = project(points.reshape(14, 3), 1, (-1.0, 2.0))
    np.testing.assert_array_equal(found, alone.reshape(7, 6))
    again = project(found, 2, (-1.0, 2.0))
    np.testing.assert_allclose(again, found, atol=1e-14)
    # Without a lower end of their own they are the simplex.
    np.testing.assert_allclose(
      project(points[:, 0], 1, (0.0, 9.0)), project(points[:, 0]), atol=1e-14
    )


@pytest.mark.parametrize("count", [3, 6, 24])
def test_points_are_pulled_within_the_cap(count):
  unit = candidates(count, 64, 2)
  cap = 3 / (count + 1)
  found = within(unit, cap)
  np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)
  assert found.min() >= 0
  assert found.max() <= cap + 1e-15
  beyond = unit.max(axis=1) > cap
  assert beyond.any()
  np.testing.assert_allclose(found[beyond].max(axis=1), cap, atol=1e-15)
  np.testing.assert_allclose(found[~beyond], unit[~beyond], atol=1e-15)


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
