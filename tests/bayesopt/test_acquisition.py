"""Acquisitions against published vectors and 60-digit arithmetic."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxmerge.bayesopt.gp import acquisition


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _exact_log_h(z: float) -> float:
  with mpmath.workdps(60):
    z = mpmath.mpf(z)
    return float(mpmath.log(mpmath.npdf(z) + z * mpmath.ncdf(z)))


@pytest.mark.parametrize(
  ("mean", "ei", "pi", "ucb"),
  [(0.55, 0.00797885, 0.5, 0.5892), (0.52, 0.00058614, 0.0668072, 0.5592)],
)
def test_known_vectors(mean, ei, pi, ucb):
  mean, std = jnp.array([mean]), jnp.array([0.02])
  log_ei = acquisition.log_expected_improvement(mean, std, 0.55)
  np.testing.assert_allclose(np.exp(log_ei[0]), ei, 1e-5)
  log_pi = acquisition.log_probability_of_improvement(mean, std, 0.55)
  np.testing.assert_allclose(np.exp(log_pi[0]), pi, 1e-5)
  np.testing.assert_allclose(
    acquisition.upper_confidence_bound(mean, std)[0], ucb, 1e-9
  )


def test_log_expected_improvement_equals_exact_arithmetic():
  z_Q = np.concatenate([np.linspace(-40, 10, 401), [-5.0, -5.0000001]])
  log_ei_Q = acquisition.log_expected_improvement(
    jnp.asarray(z_Q), jnp.ones(len(z_Q)), 0.0
  )
  exact_Q = [_exact_log_h(z) for z in z_Q]
  np.testing.assert_allclose(log_ei_Q, exact_Q, rtol=1e-12, atol=1e-12)


def test_log_expected_improvement_scales_with_std():
  log_ei = acquisition.log_expected_improvement(
    jnp.array([0.3]), jnp.array([1e-3]), 0.5
  )
  exact = np.log(1e-3) + _exact_log_h((0.3 - 0.5) / 1e-3)
  np.testing.assert_allclose(log_ei[0], exact, rtol=1e-12)


def test_gradients_are_finite_where_ei_underflows():
  z_Q = jnp.array([-1e6, -200.0, -5.0, -4.9, 0.0, 30.0])
  gradient_Q = jax.vmap(
    jax.grad(
      lambda z: acquisition.log_expected_improvement(z, jnp.ones(()), 0.0)
    )
  )(z_Q)
  assert np.all(np.isfinite(gradient_Q))
  assert np.all(np.asarray(gradient_Q) > 0)
  np.testing.assert_allclose(gradient_Q[1], 200, rtol=1e-3)


def test_zero_std_improves_nothing():
  mean_Q, std_Q = jnp.array([1.0, -1.0]), jnp.zeros(2)
  for utility in (
    acquisition.log_expected_improvement,
    acquisition.log_probability_of_improvement,
  ):
    assert np.all(utility(mean_Q, std_Q, 0.0) == -np.inf)


def test_probabilities_are_the_softmax_and_survive_large_gains():
  p_J = acquisition.probabilities(np.log([1.0, 2.0, 5.0]))
  np.testing.assert_allclose(p_J, [0.125, 0.25, 0.625])
  np.testing.assert_allclose(
    acquisition.probabilities(np.array([1e6, 1e6])), [0.5, 0.5]
  )


def test_draws_follow_the_probabilities():
  gains_J = np.log([1.0, 2.0, 5.0])
  rng = np.random.default_rng(0)
  first = [acquisition.preference(gains_J, rng)[0] for _ in range(4000)]
  np.testing.assert_allclose(
    np.bincount(first) / 4000, [0.125, 0.25, 0.625], atol=0.03
  )


def test_preference_lists_the_others_likeliest_first():
  gains_J = np.array([0.0, 3.0, 1.0])
  for seed in range(20):
    order = acquisition.preference(gains_J, np.random.default_rng(seed))
    assert sorted(order) == [0, 1, 2]
    assert order[1:] == [j for j in (1, 2, 0) if j != order[0]]
