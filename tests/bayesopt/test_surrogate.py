"""The Gaussian process: against NumPy, and how often it compiles."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxmerge.bayesopt import climb, padding, simplex, surrogate

_ACQUISITIONS = ("ei", "pi", "ucb")


def _data(num_points, scale=1.0, shift=0.0):
  rng = np.random.default_rng(0)
  points_NxD = simplex.candidates(3, 64, 1)[:num_points]
  values_N = -((points_NxD - [0.2, 0.3, 0.5]) ** 2).sum(-1)
  values_N += 0.01 * rng.normal(size=num_points)
  return points_NxD, shift + scale * values_N, np.zeros(num_points)


def _suggest(num_points=8, **kwargs):
  return surrogate.suggest(
    surrogate.Observations(*_data(num_points, **kwargs)),
    np.eye(3),
    simplex.candidates(3, 64, 0),
    acquisitions=_ACQUISITIONS,
    on_simplex=True,
  )


def _matern(a_NxD, b_MxD, theta_T):
  r = np.linalg.norm((a_NxD[:, None] - b_MxD[None]) / theta_T[:-2], axis=-1)
  poly = 1 + np.sqrt(5) * r + 5 * r**2 / 3
  return theta_T[-2] ** 2 * poly * np.exp(-np.sqrt(5) * r)


def test_masked_posterior_and_evidence_equal_numpy():
  points_NxD, values_N, _ = _data(11)
  stderrs_N = np.linspace(0, 0.3, 11)
  theta_T = np.array([0.7, 1.3, 0.05])
  data = padding.pad(
    surrogate.Observations(points_NxD, values_N, stderrs_N), 0.0, 1.0
  )
  queries_QxD = simplex.candidates(3, 8, 5)
  with surrogate.float64_on_host() as device:
    posterior = surrogate._condition(
      np.log(theta_T), jax.device_put(data, device)
    )
    mean_Q, std_Q = map(np.asarray, surrogate._predict(posterior, queries_QxD))
    evidence = float(posterior.log_marginal_likelihood)
  noise_N = stderrs_N**2 + theta_T[-1] ** 2
  gram = _matern(points_NxD, points_NxD, theta_T) + np.diag(noise_N)
  cross = _matern(queries_QxD, points_NxD, theta_T)
  solved = np.linalg.solve(gram, cross.T)
  np.testing.assert_allclose(mean_Q, solved.T @ values_N, rtol=1e-6)
  np.testing.assert_allclose(
    std_Q**2, theta_T[-2] ** 2 - (cross * solved.T).sum(-1), rtol=1e-4
  )
  exact = -0.5 * (
    values_N @ np.linalg.solve(gram, values_N)
    + np.linalg.slogdet(gram)[1]
    + 11 * np.log(2 * np.pi)
  )
  unused = -0.5 * (16 - 11) * np.log(2 * np.pi)
  np.testing.assert_allclose(evidence, exact + unused, rtol=1e-5)


def test_twelve_suggestions_compile_once():
  surrogate._suggest.clear_cache()
  for num_points in range(5, 17):
    _suggest(num_points)
  assert surrogate._suggest._cache_size() == 1


def test_figures_compile_once():
  surrogate._posterior.clear_cache()
  for num_points in range(5, 17):
    surrogate.posterior(*_data(num_points), np.eye(3)[: num_points % 3 + 1])
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
  assert all(np.all(np.isfinite(array)) for array in suggestion)
  np.testing.assert_allclose(suggestion.nominees_JxD.sum(-1), 1, atol=1e-12)
  if scale in (1e-9, 1e9):
    np.testing.assert_allclose(
      suggestion.nominees_JxD, _suggest().nominees_JxD, atol=1e-3
    )


@pytest.mark.parametrize("num_points", [1, 2])
def test_one_or_two_points_are_enough(num_points):
  assert all(np.all(np.isfinite(array)) for array in _suggest(num_points))


def test_posterior_is_in_original_units_and_follows_the_data():
  points_NxD, values_N, stderrs_N = _data(12, scale=100.0, shift=7.0)
  mean_M, std_M = surrogate.posterior(
    points_NxD, values_N, stderrs_N, points_NxD
  )
  np.testing.assert_allclose(mean_M, values_N, atol=0.2 * np.std(values_N))
  far_mean, far_std = surrogate.posterior(
    points_NxD[:3], values_N[:3], stderrs_N[:3], np.eye(3)
  )
  assert far_std.min() > std_M.max()
  assert mean_M.dtype == far_mean.dtype == np.float64


def test_known_noise_loosens_the_fit():
  points_NxD, values_N, _ = _data(12)
  misses = []
  for stderr in (0.0, 10 * np.std(values_N)):
    mean_M, _ = surrogate.posterior(
      points_NxD, values_N, np.full(12, stderr), points_NxD
    )
    misses.append(np.abs(mean_M - values_N).max())
  assert misses[1] > 5 * misses[0]


def test_one_lengthscale_on_the_simplex_and_one_a_coordinate_in_a_box():
  grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 5)] * 2), -1).reshape(-1, 2)
  values_N = np.sin(6 * grid[:, 0])  # the second coordinate does not matter
  data = padding.pad(
    surrogate.Observations(grid, values_N, np.zeros(25)), 0.0, 1.0
  )
  with surrogate.float64_on_host() as device:
    data = jax.device_put(data, device)
    box_T = np.asarray(jax.jit(surrogate._fit, static_argnums=1)(data, False))
    one_T = jax.eval_shape(lambda d: surrogate._fit(d, True), data)
  assert box_T.shape == (4,)
  assert one_T.shape == (3,)
  assert box_T[1] > box_T[0] + 1


def test_climb_finds_the_maximum_from_a_coarse_seed():
  targets = np.array([[0.61, 0.27, 0.12], [0.0, 0.33, 0.67]])

  def score(points):
    gaps = (points - targets[:, None, None]) ** 2
    return -gaps.sum(-1)

  with jax.enable_x64(True):
    found = climb.climb(
      score, np.full((2, 1, 3), 1 / 3), climb.directions(3, True), True
    )
  np.testing.assert_allclose(found, targets, atol=1e-3)


_UNDER_A_MESH = """
import jax, numpy as np
from jaxmerge.bayesopt import surrogate, simplex
mesh = jax.make_mesh((4, 2), ("data", "fsdp"),
                     axis_types=(jax.sharding.AxisType.Auto,) * 2)
def ask():
  points = simplex.candidates(3, 8, 1)
  return surrogate.suggest(
    surrogate.Observations(points, points[:, 0], 0 * points[:, 0]), np.eye(3),
    simplex.candidates(3, 64, 0), acquisitions=("ei",), on_simplex=True)
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
    env={
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
      "JAX_PLATFORMS": "cpu",
      "PATH": "/usr/bin:/bin",
    },
  )


def test_importing_starts_no_backend_and_no_gpjax():
  code = (
    "import sys, jaxmerge.bayesopt.sampler, jaxmerge.bayesopt.study;"
    "from jax._src import xla_bridge;"
    "assert not xla_bridge._backends; assert 'gpjax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_many_trials_do_not_wait_for_ever():
  """In a process of its own: XLA has hung here, beyond any Python timeout."""
  code = """
import numpy as np
from jaxmerge.bayesopt import simplex, surrogate
points_NxK = np.random.default_rng(0).dirichlet(np.ones(2), 65)
values_N = -((points_NxK[:, 0] - 0.4) ** 2)
suggestion = surrogate.suggest(
  surrogate.Observations(points_NxK, values_N, np.full(65, 1e-3)),
  np.zeros((3, 2)),
  simplex.candidates(2, 1024, 0),
  acquisitions=("ei", "pi", "ucb"),
  on_simplex=True,
)
assert abs(suggestion.nominees_JxD[0, 0] - 0.4) < 0.01
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
