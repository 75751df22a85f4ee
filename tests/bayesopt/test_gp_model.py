"""The Gaussian process against closed forms in NumPy, and its derivatives."""

import contextlib

import jax
import numpy as np
import pytest
import threadpoolctl

from jaxmerge.bayesopt.gp import model, padding, pattern_search
from jaxmerge.bayesopt.gp.host import float64_on_host
from jaxmerge.simplex import points

_THETA = model.Hyperparameters(
  lengthscales_D=np.array([0.5, 0.9, 0.7]),
  amplitude=1.3,
  trend=0.4,
  noise=0.05,
  share=0.6,
)


@contextlib.contextmanager
def _on_host(observations, groups=1):
  tangents = pattern_search.tangents(3, groups)
  padded = padding.pad(observations, 0.0, 1.0, tangents)
  with float64_on_host() as device:
    yield jax.device_put(padded, device)


def _bowl(points_NxD):
  return -((points_NxD - [0.2, 0.3, 0.5]) ** 2).sum(-1)


def _observations(count=11, **kwargs):
  points_NxD = points.candidates(3, 16, 1)[:count]
  return padding.Observations(
    points_NxD, _bowl(points_NxD), np.linspace(0, 0.3, count), **kwargs
  )


def _matern(a_NxD, b_MxD):
  r = np.linalg.norm((a_NxD[:, None] - b_MxD) / _THETA.lengthscales_D, axis=-1)
  poly = 1 + np.sqrt(5) * r + 5 * r**2 / 3
  return _THETA.amplitude**2 * poly * np.exp(-np.sqrt(5) * r)


def _trend(a_NxD, b_MxD):
  return _THETA.trend**2 * (a_NxD @ b_MxD.T + 0.5) ** 2


@pytest.mark.parametrize("groups", [0, 1])
def test_masked_posterior_and_evidence_equal_numpy(groups):
  observations = _observations()

  def kernel(a, b):
    return _matern(a, b) + (_trend(a, b) if groups else 0.0)

  queries_QxD = points.candidates(3, 8, 5)
  with _on_host(observations, groups) as data:
    posterior = model.condition(_THETA, data, groups)
    mean_Q, std_Q = map(np.asarray, model.predict(posterior, queries_QxD))
    evidence = float(posterior.log_marginal_likelihood)
  known_N = (_THETA.share * observations.stderrs_N) ** 2
  fitted = _THETA.noise**2 + model._SMALLEST_NOISE_STD**2
  points_NxD, values_N = observations.points_NxD, observations.values_N
  gram = kernel(points_NxD, points_NxD)
  gram += np.diag(known_N + fitted + model._JITTER)
  cross = kernel(queries_QxD, points_NxD)
  solved = np.linalg.solve(gram, cross.T)
  variance_Q = np.diag(kernel(queries_QxD, queries_QxD)) + model._JITTER
  np.testing.assert_allclose(mean_Q, solved.T @ values_N, rtol=1e-8)
  np.testing.assert_allclose(
    std_Q**2, variance_Q - (cross * solved.T).sum(-1), rtol=1e-8
  )
  exact = -0.5 * (
    values_N @ np.linalg.solve(gram, values_N)
    + np.linalg.slogdet(gram)[1]
    + 11 * np.log(2 * np.pi)
  )
  unused = -0.5 * (16 - 11) * np.log(2 * np.pi)
  # A padded row has variance 1 + jitter.
  np.testing.assert_allclose(evidence, exact + unused, rtol=1e-8)


def _value_row(point_D):
  return np.concatenate([point_D, [1.0], np.zeros(3)])


def _slope_row(point_D, direction_D):
  return np.concatenate([point_D, [1.0], direction_D])


@pytest.mark.parametrize("groups", [0, 1])
def test_covariances_of_slopes_are_finite_differences(groups):
  rng = np.random.default_rng(0)
  a_D, b_D = points.candidates(3, 2, 1)
  u_D, v_D = rng.normal(size=(2, 3))
  step = 1e-4
  with float64_on_host():
    theta = model.Hyperparameters(*map(jax.numpy.asarray, _THETA))
    kernel = jax.jit(model._kernel(theta, groups, 7).__call__)

    def k(a, b):
      return float(kernel(_value_row(a), _value_row(b)))

    for b in (b_D, a_D):  # apart, and at distance zero
      found = float(kernel(_slope_row(a_D, u_D), _value_row(b)))
      ahead, behind = a_D + step * u_D, a_D - step * u_D
      wanted = (k(ahead, b) - k(behind, b)) / (2 * step)
      assert found == pytest.approx(wanted, rel=1e-6, abs=1e-7)
      both = float(kernel(_slope_row(a_D, u_D), _slope_row(b, v_D)))
      plus, minus = b + step * v_D, b - step * v_D
      bent = k(ahead, plus) - k(ahead, minus) - k(behind, plus)
      bent = (bent + k(behind, minus)) / (4 * step**2)
      assert both == pytest.approx(bent, rel=2e-3)


def test_the_posterior_has_the_slopes_that_it_was_told():
  points_NxD = points.candidates(3, 4, 1)
  gradients_NxD = np.random.default_rng(0).normal(size=(4, 3))
  observations = padding.Observations(
    points_NxD,
    np.zeros(4),
    np.zeros(4),
    gradients_NxD=gradients_NxD,
    gradient_stderrs_N=np.zeros(4),
  )
  step = 1e-4
  tangents_PxD = pattern_search.tangents(3, 1)
  with _on_host(observations) as data:
    theta = _THETA._replace(noise=1e-4)
    posterior = model.condition(theta, data, 1)
    for point_D, gradient_D in zip(points_NxD, gradients_NxD):
      for direction_D in tangents_PxD:
        ends = np.stack([point_D + s * step * direction_D for s in (1, -1)])
        mean, _ = model.predict(posterior, ends)
        slope = float(mean[0] - mean[1]) / (2 * step)
        assert slope == pytest.approx(gradient_D @ direction_D, abs=1e-3)


def test_a_noisy_slope_is_believed_less():
  observations = padding.Observations(
    np.eye(3)[:1],
    np.zeros(1),
    np.zeros(1),
    gradients_NxD=np.array([[1.0, 0.0, 0.0]]),
    gradient_stderrs_N=np.zeros(1),
  )
  queries = np.array([[0.8, 0.1, 0.1]])
  means = []
  for stderr in (0.0, 100.0):
    noisy = observations._replace(gradient_stderrs_N=np.array([stderr]))
    with _on_host(noisy) as data:
      posterior = model.condition(_THETA, data, 1)
      means.append(float(model.predict(posterior, queries)[0][0]))
  assert abs(means[1]) < 0.1 * abs(means[0])


def test_the_jitter_ladder_gives_a_number_where_factoring_fails():
  observations = padding.Observations(
    np.tile(np.eye(3)[:1], (12, 1)), np.linspace(0, 1, 12), np.zeros(12)
  )
  theta = _THETA._replace(amplitude=1e3, noise=0.0)
  with _on_host(observations) as data:
    bare = model.condition(theta, data, 1)
    safe = model.condition_safely(theta, data, 1)
    mean, std = model.predict(safe, np.eye(3))
  assert not np.isfinite(float(bare.log_marginal_likelihood))
  assert np.isfinite(mean).all()
  assert np.isfinite(std).all()
  assert float(mean[0]) == pytest.approx(0.5, abs=0.1)


def test_draws_have_the_mean_and_the_covariance_of_the_posterior():
  queries_QxD = points.candidates(3, 8, 5)
  rng = np.random.default_rng(0)
  with _on_host(_observations(5)) as data:
    posterior = model.condition(_THETA, data, 1)
    mean_Q, std_Q = map(np.asarray, model.predict(posterior, queries_QxD))
    draw = jax.vmap(lambda n: model.draw(posterior, queries_QxD, n))
    drawn_SxQ = np.asarray(draw(rng.normal(size=(4000, 8))))
  np.testing.assert_allclose(drawn_SxQ.mean(0), mean_Q, atol=4 * 0.02)
  np.testing.assert_allclose(drawn_SxQ.std(0), std_Q, rtol=0.1)


def test_lengthscales_follow_what_matters():
  grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 5)] * 2), -1).reshape(-1, 2)
  values_N = np.sin(6 * grid[:, 0])  # the second coordinate does not matter
  observations = padding.Observations(grid, values_N, np.zeros(25))
  padded = padding.pad(observations, 0.0, 1.0, pattern_search.tangents(2, 0))
  fit = jax.jit(model.fit, static_argnums=(1, 2))
  with float64_on_host() as device:
    theta = fit(jax.device_put(padded, device), 2, 0)
  lengthscales_D = np.asarray(theta.lengthscales_D)
  assert lengthscales_D[1] > 1.5 * lengthscales_D[0]


def test_one_pair_has_one_lengthscale():
  with float64_on_host():
    theta = model.hyperparameters(np.zeros(5), 2, 1)
    assert np.ptp(np.asarray(theta.lengthscales_D)) == 0
    theta = model.hyperparameters(np.r_[np.zeros(5), 1, 0, 0], 3, 1)
    assert np.ptp(np.asarray(theta.lengthscales_D)) > 0


def test_blas_has_one_thread_inside_and_as_many_as_before_after():
  def threads():
    found = threadpoolctl.threadpool_info()
    return {x["num_threads"] for x in found if x["user_api"] == "blas"}

  with threadpoolctl.threadpool_limits(2, "blas"):
    with float64_on_host():
      assert threads() == {1}
    assert threads() == {2}
