"""The solver of rows that sum to zero within bounds, against SciPy's."""

import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.optimize

from jaxmerge.simplex.capped_rows import (
  bowl,
  minimise_rows,
  project,
  solve_damped,
  violation,
)


def _problem(seed, p, k, reach):
  rng = np.random.default_rng(seed)
  root = rng.normal(size=(p * k, 3 * p * k)) * rng.uniform(0.3, 1.5, (p * k, 1))
  low_PxK = -reach * rng.uniform(0.3, 1, (p, k))
  high_PxK = reach * rng.uniform(0.3, 1, (p, k))
  return root @ root.T / (3 * p * k), rng.normal(size=(p, k)), low_PxK, high_PxK


def _scipy(matrix, slopes_PxK, low_PxK, high_PxK):
  p, k = slopes_PxK.shape
  found = scipy.optimize.minimize(
    lambda d: slopes_PxK.ravel() @ d + d @ matrix @ d / 2,
    np.zeros(p * k),
    jac=lambda d: slopes_PxK.ravel() + matrix @ d,
    method="SLSQP",
    bounds=list(zip(low_PxK.ravel(), high_PxK.ravel(), strict=True)),
    constraints={
      "type": "eq",
      "fun": lambda d: d.reshape(p, k).sum(1),
      "jac": lambda d: np.kron(np.eye(p), np.ones(k)),
    },
    options={"maxiter": 1000, "ftol": 1e-12},
  )
  assert found.success
  return found.fun


@pytest.mark.parametrize(
  ("p", "k", "reach"),
  [(p, k, r) for p, k in ((1, 2), (1, 6), (5, 6)) for r in (0.05, 0.5, 500)]
  + [(10, 12, 0.5)],
)
def test_the_minimum_is_scipys(p, k, reach):
  matrix, slopes_PxK, low_PxK, high_PxK = _problem(p * k, p, k, reach)
  d_PxK = minimise_rows(bowl(matrix, low_PxK, high_PxK), slopes_PxK)
  here = np.sum(slopes_PxK * d_PxK) + d_PxK.ravel() @ matrix @ d_PxK.ravel() / 2
  assert here == pytest.approx(
    _scipy(matrix, slopes_PxK, low_PxK, high_PxK), abs=1e-6
  )
  assert np.abs(d_PxK.sum(1)).max() < 1e-12
  assert np.all((d_PxK >= low_PxK) & (d_PxK <= high_PxK))
  slopes = slopes_PxK + (matrix @ d_PxK.ravel()).reshape(p, k)
  assert violation(slopes, d_PxK, low_PxK, high_PxK) < 1e-5
  # Bounds this narrow bind, and those this wide do not.
  at_bound = np.minimum(d_PxK - low_PxK, high_PxK - d_PxK) < 1e-9
  assert reach == 0.5 or np.any(at_bound) == (reach < 1)


def test_360_directions_are_solved_to_the_end():
  matrix, slopes_PxK, low_PxK, high_PxK = _problem(0, 40, 9, 0.3)
  d_PxK = minimise_rows(bowl(matrix, low_PxK, high_PxK), slopes_PxK)
  slopes = slopes_PxK + (matrix @ d_PxK.ravel()).reshape(40, 9)
  assert violation(slopes, d_PxK, low_PxK, high_PxK) < 1e-5
  assert 0 < np.sum((d_PxK == low_PxK) | (d_PxK == high_PxK)) < 360


@hypothesis.given(
  st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 7)
)
def test_the_projection_is_the_nearest_point(seed, p, k):
  rng = np.random.default_rng(seed)
  low_PxK, high_PxK = -rng.random((p, k)), rng.random((p, k))
  low_PxK[rng.random((p, k)) < 0.2] = 0
  high_PxK[rng.random((p, k)) < 0.2] = 0
  points_PxK = rng.normal(size=(p, k))
  found_PxK = project(points_PxK, low_PxK, high_PxK)
  assert np.all((found_PxK >= low_PxK) & (found_PxK <= high_PxK))
  np.testing.assert_allclose(found_PxK.sum(1), 0, atol=1e-12)
  # The nearest point of a convex set makes no acute angle with another one.
  for _ in range(5):
    share = rng.random((p, 1))
    other_PxK = project(rng.normal(size=(p, k)), low_PxK, high_PxK) * share
    angle = np.sum((points_PxK - found_PxK) * (other_PxK - found_PxK))
    assert angle <= 1e-12


def test_the_violation_is_half_of_what_a_move_gains():
  slopes = np.array([[1.0, 3.0, 2.0]])
  free = np.full((1, 3), 9.0)
  assert violation(slopes, 0 * free, -free, free) == 1
  low_PxK = np.array([[-9.0, 0.0, -9.0]])
  assert violation(slopes, 0 * free, low_PxK, free) == 0.5
  high_PxK = np.array([[0.0, 9.0, 9.0]])
  assert violation(slopes, 0 * free, low_PxK, high_PxK) == 0


@pytest.mark.parametrize("scale", [0.0, 1e-320, 1e-200])
def test_a_matrix_that_says_nothing_moves_nothing(scale):
  """Of identical checkpoints, whose slopes are zero too."""
  matrix = scale * np.diag([1.0, 0.5, 0.0, -1e-8])
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert not solve_damped(matrix, np.zeros((4, 2))).any()
    assert np.isfinite(solve_damped(matrix, np.full((4, 2), 1e-9))).all()
    box = np.ones((1, 4))
    d_PxK = minimise_rows(bowl(matrix, -box, box), np.full((1, 4), 1e-9))
  np.testing.assert_allclose(d_PxK, 0, atol=1e-9)
