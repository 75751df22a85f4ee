"""The Gaussian process: against NumPy, and how often it compiles."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxmerge.bayesopt.gp import pattern_search, surrogate
from jaxmerge.simplex.points import candidates
from tests.helpers import with_devices

_ACQUISITIONS = ("ei", "pi", "ucb")


def _data(num_points, scale=1.0, shift=0.0):
  rng = np.random.default_rng(0)
  points_NxD = candidates(3, 64, 1)[:num_points]
  values_N = -((points_NxD - [0.2, 0.3, 0.5]) ** 2).sum(-1)
  values_N += 0.01 * rng.normal(size=num_points)
  return points_NxD, shift + scale * values_N, np.zeros(num_points)


def _suggest(num_points=8, **kwargs):
  return surrogate.suggest(
    surrogate.Observations(*_data(num_points, **kwargs)),
    np.eye(3),
    candidates(3, 64, 0),
    acquisitions=_ACQUISITIONS,
    groups=1,
    rng=np.random.default_rng(0),
  )


def test_twelve_suggestions_compile_once():
  surrogate._suggest.clear_cache()
  for num_points in range(5, 17):
    _suggest(num_points)
  assert surrogate._suggest._cache_size() == 1


def test_figures_compile_once():
  surrogate._posterior.clear_cache()
  for num_points in range(5, 17):
    observations = surrogate.Observations(*_data(num_points))
    # At the trials, and on the grid of a pair at last.
    num_queries = num_points if num_points < 16 else 201
    surrogate.posterior(observations, np.resize(np.eye(3), (num_queries, 3)))
  assert surrogate._posterior._cache_size() == 1


def test_the_rest_of_the_program_stays_in_32_bits():
  suggestion = _suggest()
  assert suggestion.nominees_JxD.dtype == np.float64
  assert jax.numpy.ones(1).dtype == np.float32


@pytest.mark.parametrize(
  ("scale", "shift"), [(1e-9, 0), (1e9, 0), (1e-3, 1e3), (0, 5), (0, 0)]
)
def test_any_scale_of_scores_gives_finite_points(scale, shift):
  suggestion = _suggest(scale=scale, shift=shift)
  assert all(
    np.all(np.isfinite(array)) for array in jax.tree.leaves(suggestion)
  )
  np.testing.assert_allclose(suggestion.nominees_JxD.sum(-1), 1, atol=1e-12)
  if scale in (1e-9, 1e9):
    np.testing.assert_allclose(
      suggestion.nominees_JxD, _suggest().nominees_JxD, atol=1e-3
    )


@pytest.mark.parametrize("num_points", [1, 2])
def test_one_or_two_points_are_enough(num_points):
  found = jax.tree.leaves(_suggest(num_points))
  assert all(np.all(np.isfinite(array)) for array in found)


def test_posterior_is_in_original_units_and_follows_the_data():
  points_NxD, values_N, stderrs_N = _data(12, scale=100.0, shift=7.0)
  observations = surrogate.Observations(points_NxD, values_N, stderrs_N)
  mean_M, std_M = surrogate.posterior(observations, points_NxD)
  np.testing.assert_allclose(mean_M, values_N, atol=0.2 * np.std(values_N))
  few = surrogate.Observations(*(array[:3] for array in observations[:3]))
  far_mean, far_std = surrogate.posterior(few, np.eye(3))
  assert far_std.min() > std_M.max()
  assert mean_M.dtype == far_mean.dtype == np.float64


def test_known_noise_loosens_the_fit():
  points_NxD, values_N, _ = _data(12)
  misses = []
  for stderr in (0.0, 10 * np.std(values_N)):
    observations = surrogate.Observations(
      points_NxD, values_N, np.full(12, stderr)
    )
    mean_M, _ = surrogate.posterior(observations, points_NxD)
    misses.append(np.abs(mean_M - values_N).max())
  assert misses[1] > 5 * misses[0]


def test_climb_finds_the_maximum_from_a_coarse_seed():
  targets = np.array([[0.61, 0.27, 0.12], [0.0, 0.33, 0.67]])

  def score(points):
    gaps = (points - targets[:, None, None]) ** 2
    return -gaps.sum(-1)

  with jax.enable_x64(True):
    found = pattern_search.climb(
      score, np.full((2, 1, 3), 1 / 3), pattern_search.directions(3, 1), 1
    )
  np.testing.assert_allclose(found, targets, atol=1e-3)


_UNDER_A_MESH = """
import jax, numpy as np
from jaxmerge.bayesopt.gp import surrogate
from jaxmerge.simplex import points as simplex
mesh = jax.make_mesh((4, 2), ("data", "fsdp"),
                     axis_types=(jax.sharding.AxisType.Auto,) * 2)
def ask():
  points = simplex.candidates(3, 8, 1)
  return surrogate.suggest(
    surrogate.Observations(points, points[:, 0], 0 * points[:, 0]), np.eye(3),
    simplex.candidates(3, 64, 0), acquisitions=("ei",), groups=1,
    rng=np.random.default_rng(0))
plain = ask()
with jax.set_mesh(mesh):
  meshed = ask()
  assert jax.sharding.get_mesh() == mesh
assert all(np.array_equal(a, b) for a, b in zip(plain, meshed))
assert surrogate._suggest._cache_size() == 1
"""


def test_an_ambient_mesh_changes_nothing():
  subprocess.run(
    [sys.executable, "-c", _UNDER_A_MESH],
    check=True,
    env=with_devices(8),
  )


def test_importing_starts_no_backend_and_no_gpjax():
  code = (
    "import sys, jaxmerge.bayesopt.sampler, jaxmerge.bayesopt.study.study;"
    "from jax._src import xla_bridge;"
    "assert not xla_bridge._backends; assert 'gpjax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_many_trials_do_not_wait_for_ever():
  """In a process of its own: XLA has hung here, beyond any Python timeout."""
  code = """
import numpy as np
from jaxmerge.simplex import points as simplex
from jaxmerge.bayesopt.gp import surrogate
points_NxK = np.random.default_rng(0).dirichlet(np.ones(2), 65)
values_N = -((points_NxK[:, 0] - 0.4) ** 2)
suggestion = surrogate.suggest(
  surrogate.Observations(points_NxK, values_N, np.full(65, 1e-3)),
  np.zeros((3, 2)),
  simplex.candidates(2, 1024, 0),
  acquisitions=("ei", "pi", "ucb"),
  groups=1,
  rng=np.random.default_rng(0),
)
assert abs(suggestion.nominees_JxD[0, 0] - 0.4) < 0.01
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def _pending_suggestion(pending):
  points_NxD, values_N, stderrs_N = _data(8)
  return surrogate.suggest(
    surrogate.Observations(
      points_NxD, values_N, stderrs_N, pending_MxD=np.reshape(pending, (-1, 3))
    ),
    np.eye(3),
    candidates(3, 64, 0),
    acquisitions=_ACQUISITIONS,
    groups=1,
    rng=np.random.default_rng(0),
  )


def test_a_pending_point_is_believed_and_not_asked_again():
  alone = _pending_suggestion([])
  # Of EI and UCB: PI stays near the best.
  before = alone.nominees_JxD[[0, 2]]
  believed = _pending_suggestion(before)
  gaps = np.abs(before[:, None] - believed.nominees_JxD[[0, 2]])
  assert gaps.max(axis=-1).min() > 0.005
  # What it is told about other points does not change: rewards are of scores.
  np.testing.assert_allclose(believed.rewards_J, alone.rewards_J, atol=1e-9)
  assert believed.std_C.mean() < alone.std_C.mean()


@pytest.mark.parametrize("pending", [np.eye(3), [[0.6, 0.3, 0.1]]])
def test_what_is_believed_of_a_pending_point_moves_no_mean(pending):
  """An observation equal to the posterior mean tells nothing but certainty."""
  alone = _pending_suggestion([])
  believed = _pending_suggestion(pending)
  size = np.ptp(alone.mean_C)
  np.testing.assert_allclose(
    believed.mean_C, alone.mean_C, atol=1e-6 * size, rtol=0
  )
  assert np.all(believed.std_C <= alone.std_C * (1 + 1e-6))
  assert believed.std_C.mean() < alone.std_C.mean()


def test_slopes_place_the_optimum_that_values_alone_do_not():
  points_NxD = np.eye(3)
  best_D = np.array([0.2, 0.3, 0.5])
  values_N = -((points_NxD - best_D) ** 2).sum(-1)
  plain = surrogate.Observations(points_NxD, values_N, np.zeros(3))
  slopes = plain._replace(
    gradients_NxD=-2 * (points_NxD - best_D), gradient_stderrs_N=np.zeros(3)
  )
  misses = []
  for observations in (plain, slopes):
    found = surrogate.suggest(
      observations,
      np.eye(3),
      candidates(3, 64, 0),
      acquisitions=_ACQUISITIONS,
      groups=1,
      rng=np.random.default_rng(0),
    )
    misses.append(np.abs(found.nominees_JxD[0] - best_D).max())
  assert misses[1] < 0.02 < misses[0]


def test_a_gradient_that_is_not_known_is_left_out():
  points_NxD, values_N, stderrs_N = _data(6)
  nothing = np.full((6, 3), np.nan)
  observations = surrogate.Observations(points_NxD, values_N, stderrs_N)
  mean_M, std_M = surrogate.posterior(observations, np.eye(3))
  also_M, also_std_M = surrogate.posterior(
    observations._replace(
      gradients_NxD=nothing, gradient_stderrs_N=np.zeros(6)
    ),
    np.eye(3),
  )
  np.testing.assert_allclose(also_M, mean_M, atol=1e-4)
  np.testing.assert_allclose(also_std_M, std_M, atol=1e-4)
