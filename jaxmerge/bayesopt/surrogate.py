"""The Gaussian process behind every suggestion; the only user of GPJax.

N points (padded to a power of two), D coordinates, J acquisitions, C
candidates, Q queries, S starts, T hyperparameters, P poll directions.

One jitted program fits the hyperparameters, scores the previous nominees and
maximises every acquisition. Points, mask, candidates and hyperparameters are
all arrays in it, so that a bucket and a dimension compile once.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmerge.bayesopt import acquisition, climb
from jaxmerge.bayesopt.host import float64_on_host
from jaxmerge.bayesopt.padding import (
  Observations,
  Padded,
  bucket_size,
  pad,
  standardisation,
)

_JITTER = 1e-9
_SMALLEST_NOISE_STD = 1e-5

# Log-normal priors (median, standard deviation of the log) in units of the
# domain's diameter and of the targets' standard deviation. They keep three
# points from being explained by noise alone or by one wiggle per point.
_LENGTHSCALE_PRIOR = (0.7, 0.8)
_AMPLITUDE_PRIOR = (1.5, 0.8)
_NOISE_PRIOR = (0.01, 1.5)
# Starts of the fit, as offsets from the medians in prior standard deviations.
_STARTS = ((0.0, 0.0, 0.0), (-1.0, 0.0, 1.5), (1.0, 0.5, -1.0))
_FIT_STEPS = 20
_LINE_SEARCH_STEPS = 12

# XLA's CPU executor waits for ever for these programs from 128 points on when
# they are scheduled for concurrency, its default (seen with jax 0.10.2).
_COMPILER_OPTIONS = {
  "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
}

# Each climb starts at so many of the best candidates and at the incumbent.
_NUM_SEEDS = 3


class Suggestion(NamedTuple):
  """What one fit says.

  Attributes:
    nominees_JxD: the maximiser of each acquisition.
    rewards_J: standardised posterior mean at each earlier nominee.
    std_C: standardised posterior standard deviation at each candidate.
  """

  nominees_JxD: np.ndarray
  rewards_J: np.ndarray
  std_C: np.ndarray


def _gpjax() -> Any:
  # Importing GPJax starts a JAX backend: never at import time, never traced.
  import gpjax

  return gpjax


def _prior_moments(dimension: int, on_simplex: bool) -> tuple[Array, Array]:
  """Mean and standard deviation of log (lengthscales, amplitude, noise)."""
  num_lengthscales = 1 if on_simplex else dimension
  diameter = np.sqrt(2.0) if on_simplex else np.sqrt(dimension)
  medians = [_LENGTHSCALE_PRIOR[0] * diameter] * num_lengthscales
  medians += [_AMPLITUDE_PRIOR[0], _NOISE_PRIOR[0]]
  spreads = [_LENGTHSCALE_PRIOR[1]] * num_lengthscales
  spreads += [_AMPLITUDE_PRIOR[1], _NOISE_PRIOR[1]]
  return jnp.log(jnp.asarray(medians)), jnp.asarray(spreads)


def _condition(log_theta_T: Array, data: Padded) -> Any:
  """GPJax's exact posterior of the masked data at given hyperparameters.

  A linear kernel on the mask coordinate multiplies the Matern-5/2 kernel, so
  that a padded row has no covariance with anything: with target 0 and noise 1
  it adds a constant to the evidence and nothing to a prediction.
  """
  gpx = _gpjax()
  dimension = data.points_NxE.shape[-1] - 1
  theta_T = jnp.exp(log_theta_T)
  lengthscales = theta_T[:-2] * jnp.ones(dimension)
  matern = gpx.kernels.Matern52(
    active_dims=list(range(dimension)),
    lengthscale=gpx.parameters.Real(lengthscales),
    variance=gpx.parameters.Real(theta_T[-2] ** 2),
  )
  mask = gpx.kernels.Linear(
    active_dims=[dimension], variance=gpx.parameters.Real(1.0)
  )
  fitted = theta_T[-1] ** 2 + _SMALLEST_NOISE_STD**2
  noise_N = data.noise_N + fitted * data.points_NxE[:, -1]
  prior = gpx.gps.Prior(
    kernel=matern * mask,
    mean_function=gpx.mean_functions.Zero(),
    jitter=_JITTER,
  )
  likelihood = gpx.likelihoods.Gaussian(obs_stddev=jnp.sqrt(noise_N))
  train = gpx.Dataset(X=data.points_NxE, y=data.values_N[:, None])
  return (prior * likelihood).condition(train)


def _fit(data: Padded, on_simplex: bool) -> Array:
  """Maximum a posteriori log hyperparameters, by L-BFGS from a few starts."""
  gpx = _gpjax()
  dimension = data.points_NxE.shape[-1] - 1
  mean_T, spread_T = _prior_moments(dimension, on_simplex)

  def loss(unit_T: Array, _: object) -> Array:
    # unit_T is whitened by the prior: well scaled for L-BFGS.
    posterior = _condition(mean_T + spread_T * unit_T, data)
    return 0.5 * jnp.sum(unit_T**2) - posterior.log_marginal_likelihood

  def descend(start_T: Array) -> tuple[Array, Array]:
    return gpx.fit_lbfgs(
      model=start_T,
      objective=loss,
      train_data=None,
      max_iters=_FIT_STEPS,
      safe=False,
      max_linesearch_steps=_LINE_SEARCH_STEPS,
      gtol=1e-3,
    )

  # Every lengthscale starts at the same offset: columns 0, ..., 0, 1, 2.
  columns_T = np.r_[np.zeros(mean_T.shape[0] - 2, int), 1, 2]
  starts_SxT = jnp.asarray(_STARTS)[:, columns_T]
  units_SxT, losses_S = jax.vmap(descend)(starts_SxT)
  losses_S = jnp.where(jnp.isfinite(losses_S), losses_S, jnp.inf)
  best_T = units_SxT[jnp.argmin(losses_S)]
  # No start converged: the prior medians are still a usable process.
  best_T = jnp.where(jnp.all(jnp.isfinite(best_T)), best_T, 0.0)
  return mean_T + spread_T * best_T


def _predict(posterior: Any, queries_QxD: Array) -> tuple[Array, Array]:
  """Posterior mean and standard deviation of f (not of a noisy score)."""
  ones_Qx1 = jnp.ones((queries_QxD.shape[0], 1))
  predictive = posterior(
    jnp.concatenate([queries_QxD, ones_Qx1], axis=-1), covariance="diagonal"
  )
  return predictive.mean, jnp.sqrt(jnp.maximum(predictive.variance, _JITTER))


@functools.partial(
  jax.jit,
  static_argnames=("acquisitions", "on_simplex"),
  compiler_options=_COMPILER_OPTIONS,
)
def _suggest(
  data: Padded,
  previous_JxD: Array,
  candidates_CxD: Array,
  directions_PxD: Array,
  *,
  acquisitions: tuple[str, ...],
  on_simplex: bool,
) -> tuple[Array, Array, Array]:
  posterior = _condition(_fit(data, on_simplex), data)
  utilities = [acquisition.UTILITIES[name] for name in acquisitions]
  points_NxD, mask_N = data.points_NxE[:, :-1], data.points_NxE[:, -1]
  rewards_J, _ = _predict(posterior, previous_JxD)
  mean_C, std_C = _predict(posterior, candidates_CxD)
  # The incumbent is the best posterior mean at an observed point: the best
  # observed score where scores are exact, not its luckiest one where not.
  mean_N, _ = _predict(posterior, points_NxD)
  mean_N = jnp.where(mask_N > 0, mean_N, -jnp.inf)
  incumbent = jnp.argmax(mean_N)
  best = mean_N[incumbent]
  scores_JxC = jnp.stack([u(mean_C, std_C, best) for u in utilities])
  _, top_JxS = jax.lax.top_k(scores_JxC, _NUM_SEEDS)
  incumbent_JxSxD = jnp.broadcast_to(
    points_NxD[incumbent], (len(utilities), 1, points_NxD.shape[-1])
  )
  seeds_JxSxD = jnp.concatenate(
    [candidates_CxD[top_JxS], incumbent_JxSxD], axis=1
  )

  def score(points_JxSxPxD: Array) -> Array:
    shape = points_JxSxPxD.shape[:-1]
    queries_QxD = points_JxSxPxD.reshape(-1, points_NxD.shape[-1])
    mean, std = (a.reshape(shape) for a in _predict(posterior, queries_QxD))
    return jnp.stack(
      [u(mean[j], std[j], best) for j, u in enumerate(utilities)]
    )

  nominees_JxD = climb.climb(score, seeds_JxSxD, directions_PxD, on_simplex)
  return nominees_JxD, rewards_J, std_C


@functools.partial(
  jax.jit, static_argnames=("on_simplex",), compiler_options=_COMPILER_OPTIONS
)
def _posterior(
  data: Padded, queries_QxD: Array, *, on_simplex: bool
) -> tuple[Array, Array]:
  return _predict(_condition(_fit(data, on_simplex), data), queries_QxD)


def suggest(
  observations: Observations,
  previous_JxD: np.ndarray,
  candidates_CxD: np.ndarray,
  *,
  acquisitions: tuple[str, ...],
  on_simplex: bool,
) -> Suggestion:
  """Fits the process and maximises every acquisition.

  Args:
    observations: at least one finite score.
    previous_JxD: earlier nominees to score after this refit.
    candidates_CxD: where the climb starts, and where `std_C` is read.
    acquisitions: names in acquisition.UTILITIES.
    on_simplex: coordinates are a point on the simplex (one lengthscale), else
      in the unit box (one lengthscale per coordinate).
  """
  _gpjax()
  centre, scale = standardisation(observations.values_N)
  dimension = observations.points_NxD.shape[1]
  arrays = (
    pad(observations, centre, scale),
    np.asarray(previous_JxD, np.float64),
    np.asarray(candidates_CxD, np.float64),
    climb.directions(dimension, on_simplex),
  )
  with float64_on_host() as device:
    result = _suggest(
      *jax.device_put(arrays, device),
      acquisitions=acquisitions,
      on_simplex=on_simplex,
    )
    return Suggestion(*(np.asarray(array) for array in result))


def posterior(
  points_NxD: np.ndarray,
  values_N: np.ndarray,
  stderrs_N: np.ndarray,
  queries_MxD: np.ndarray,
  *,
  on_simplex: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
  """Posterior mean and standard deviation at the queries, in original units.

  The process is fitted as for a suggestion; the sign of the values does not
  matter. Queries are padded too: a figure compiles once.
  """
  _gpjax()
  values_N = np.asarray(values_N, np.float64)
  centre, scale = standardisation(values_N)
  queries_MxD = np.asarray(queries_MxD, np.float64)
  num_queries = len(queries_MxD)
  padding = bucket_size(num_queries) - num_queries
  arrays = (
    pad(
      Observations(
        np.asarray(points_NxD, np.float64),
        values_N,
        np.asarray(stderrs_N, np.float64),
      ),
      centre,
      scale,
    ),
    np.pad(queries_MxD, ((0, padding), (0, 0))),
  )
  with float64_on_host() as device:
    result = _posterior(*jax.device_put(arrays, device), on_simplex=on_simplex)
    mean_M, std_M = (np.asarray(array)[:num_queries] for array in result)
  return centre + scale * mean_M, scale * std_M
