"""Controls keep to their budget and domain, and do what their names say."""

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.bayesopt.baselines import BASELINES, num_evaluations
from jaxmerge.simplex.bounds import normalised
from jaxmerge.simplex.points import sticks_from_unit, unit_from_sticks

TARGET = {
  2: np.array([0.37, 0.63]),
  3: np.array([0.2, 0.35, 0.45]),
  6: np.array([0.05, 0.05, 0.1, 0.2, 0.3, 0.3]),
}


class Bowl:
  """A quadratic loss that remembers what it was asked."""

  def __init__(self, num_weights: int):
    self._target_K = TARGET[num_weights]
    self.points: list[list[float]] = []
    self.losses: list[float] = []

  def __call__(self, unit_K) -> float:
    away_K = np.array(unit_K) - self._target_K
    self.points.append(list(unit_K))
    self.losses.append(3.0 + float(away_K @ away_K) + float(away_K[0]) ** 2)
    return self.losses[-1]


def run(name: str, num_weights: int, budget: int, seed: int = 0) -> Bowl:
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  bowl = Bowl(num_weights)
  BASELINES[name](bowl, num_weights, budget, seed)
  return bowl


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("num_weights", [2, 3, 6])
def test_budget_domain_and_first_question(name, num_weights):
  bowl = run(name, num_weights, 12)
  points_NxK = np.array(bowl.points)
  assert len(points_NxK) == num_evaluations(name, num_weights, 12) <= 12
  assert points_NxK.min() >= -1e-12
  np.testing.assert_allclose(points_NxK.sum(1), 1.0, atol=1e-12)
  if name == "grid":
    assert len({tuple(p) for p in bowl.points}) == len(points_NxK)
  else:
    assert len(points_NxK) == 12
    np.testing.assert_allclose(points_NxK[0], np.eye(num_weights)[-1])


@pytest.mark.parametrize("name", ["random", "cma_es"])
def test_a_seed_decides(name):
  first, again, other = (run(name, 6, 8, seed).points for seed in (1, 1, 2))
  assert first == again
  assert first != other


def test_cma_es_moves_towards_the_lowest():
  bowl = run("cma_es", 3, 60)
  assert np.mean(bowl.losses[-15:]) < np.mean(bowl.losses[1:16])
  assert min(bowl.losses) < 3.01


@pytest.mark.parametrize(("num_weights", "budget"), [(2, 6), (3, 8), (6, 45)])
def test_a_parabola_finds_a_parabola_at_once(num_weights, budget):
  """As soon as there are as many points as terms, the next one is the best."""
  assert min(run("quadratic", num_weights, budget).losses) < 3.0 + 2e-4


def test_a_parabola_asks_no_point_twice():
  points_NxK = np.array(run("quadratic", 2, 20).points)
  gaps = np.diff(np.sort(points_NxK[:, 0]))
  assert gaps.min() > 0


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=7))
def test_sticks_and_back(parts):
  unit_K = normalised(parts)
  sticks = sticks_from_unit(unit_K)
  assert len(sticks) == len(unit_K) - 1
  assert all(0 <= stick <= 1 for stick in sticks)
  np.testing.assert_allclose(unit_from_sticks(sticks), unit_K, atol=1e-9)


def test_one_stick_is_the_last_weight():
  assert unit_from_sticks([0.3]) == [0.7, pytest.approx(0.3)]


def test_vertices_have_sticks():
  for vertex_K in np.eye(4):
    sticks = sticks_from_unit(vertex_K)
    np.testing.assert_allclose(unit_from_sticks(sticks), vertex_K)


def test_uniform_sticks_are_uniform_on_the_simplex():
  rng = np.random.default_rng(0)
  sticks = rng.random((4000, 3))
  points = np.array([unit_from_sticks(s) for s in sticks])
  # Dirichlet(1, 1, 1, 1): mean 1/4 and variance 3/80 for every weight.
  np.testing.assert_allclose(points.mean(0), 0.25, atol=0.012)
  np.testing.assert_allclose(points.var(0), 3 / 80, rtol=0.08)
