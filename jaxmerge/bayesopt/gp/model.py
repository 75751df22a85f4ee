"""The Gaussian process; the only user of GPJax.

N rows (padded to a power of two), D coordinates, G simplices (0: a box), Q
queries, S starts, T hyperparameters. Everything here can be jitted.

A row is a value or, where gradients are used, a slope along a direction. The
first D columns are the point, then comes the mask (1, or 0 for padding), then,
where gradients are used, the direction (D columns, zero for a value).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmerge.bayesopt.gp.padding import Padded

_JITTER = 1e-10
_SMALLEST_NOISE_STD = 1e-6
# Added to the variance of every row until the covariance can be factored.
_LADDER = (0.0, 1e-8, 1e-6, 1e-4, 1e-2)

# Log-normal priors: the median, and the standard deviation of the logarithm, in
# units of a simplex's diameter (of the box's) and of the targets' standard
# deviation. They keep three points from being explained by noise alone or by
# one wiggle per point.
_PRIORS = (
  (0.7, 0.8),  # lengthscale
  (0.5, 0.8),  # amplitude
  (1.0, 1.0),  # trend
  (0.001, 1.5),  # noise
  # Of a trial's known standard error, what is not shared with its neighbours:
  # they are scored on the same sequences.
  (0.3, 1.0),
)
# How far the logarithms of single lengthscales stray from the common one.
_ARD_SPREAD = 0.3
# Starts of the fit, as offsets from the medians in prior standard deviations.
_STARTS = (
  (0.0, 0.0, 0.0, 0.0, 0.0),
  (-1.0, -1.0, 0.5, 1.5, 1.0),
  (1.0, 0.5, -1.0, -1.0, -1.0),
)
_FIT_STEPS = 12
_LINE_SEARCH_STEPS = 12


class Hyperparameters(NamedTuple):
  """Hyperparameters of one Gaussian process, in standardised units.

  Attributes:
    lengthscales_D: of the Matern-5/2 kernel, one a coordinate (ARD).
    amplitude: its standard deviation.
    trend: scale of the quadratic trend; not used in a box.
    noise: fitted standard deviation that is added to what is known.
    share: factor of the known standard errors.
  """

  lengthscales_D: Array
  amplitude: Array
  trend: Array
  noise: Array
  share: Array


def gpjax() -> Any:
  """GPJax: importing it starts a JAX backend, so never at import time."""
  import gpjax

  return gpjax


def hyperparameters(
  unit_T: Array, dimension: int, groups: int
) -> Hyperparameters:
  """From whitened numbers: 0 is the prior's median, 1 one spread above it."""
  diameter = np.sqrt(2.0 if groups else dimension)
  lengthscale, *others = (
    jnp.exp(jnp.log(median) + spread * unit_T[i])
    for i, (median, spread) in enumerate(_PRIORS)
  )
  own = unit_T[len(_PRIORS) :]
  own_D = _ARD_SPREAD * own if len(own) else jnp.zeros(dimension)
  lengthscales_D = lengthscale * diameter * jnp.exp(own_D)
  return Hyperparameters(lengthscales_D, *others)


@jax.custom_jvp
def _matern(u: Array) -> Array:
  """Matern-5/2 of the squared scaled distance u, with s = sqrt(5 u).

  k = (1 + s + s^2/3) exp(-s), k' = -5/6 (1 + s) exp(-s), k'' = 25/12 exp(-s):
  none is singular at u = 0, where differentiating the square root would be.
  """
  s = jnp.sqrt(5 * u)
  return (1 + s + s**2 / 3) * jnp.exp(-s)


@jax.custom_jvp
def _matern_slope(u: Array) -> Array:
  s = jnp.sqrt(5 * u)
  return -5 / 6 * (1 + s) * jnp.exp(-s)


_matern.defjvps(lambda du, _, u: _matern_slope(u) * du)
_matern_slope.defjvps(
  # A third derivative is asked for only where u moves; 1e-16 keeps it finite.
  lambda du, _, u: 25 / 12 * jnp.exp(-jnp.sqrt(5 * u + 1e-16)) * du
)


@functools.cache
def _kernels() -> Any:
  """Our two kernels, as classes of GPJax."""
  gpx = gpjax()
  matern52: Any = gpx.kernels.Matern52
  kernel: Any = gpx.kernels.AbstractKernel

  class SmoothMatern52(matern52):
    """Matern-5/2 that can be differentiated twice at distance zero."""

    def __call__(self, x: Array, y: Array) -> Array:
      gap = self.slice_input(x) - self.slice_input(y)
      lengthscale = gpx.parameters.val(self.lengthscale)
      u = jnp.sum((gap / lengthscale) ** 2)
      return gpx.parameters.val(self.variance) * _matern(u)

  class WithSlopes(kernel):
    """Covariance of values and slopes (Rasmussen and Williams
    2006, equation 9.1), by differentiating the kernel of its values.
    """

    values: Any
    dimension: int

    def __init__(self, values: Any, dimension: int):
      self.values = values
      self.dimension = dimension
      super().__init__()

    def __call__(self, x: Array, y: Array) -> Array:
      size = self.dimension
      return _row(lambda a: _row(lambda b: self.values(a, b), y, size), x, size)

  return SmoothMatern52, WithSlopes


def _row(function: Any, row_E: Array, dimension: int) -> Array:
  """The value of a function at a row's point, or its slope as the row says."""
  point_D = row_E[:dimension]
  direction_D = row_E[dimension + 1 :]
  value, slope = jax.jvp(function, (point_D,), (direction_D,))
  return jnp.where(jnp.any(direction_D != 0), slope, value)


def _kernel(theta: Hyperparameters, groups: int, width: int) -> Any:
  gpx = gpjax()
  matern52, with_slopes = _kernels()
  dimension = theta.lengthscales_D.shape[0]
  columns = list(range(dimension))
  kernel = matern52(
    active_dims=columns,
    lengthscale=gpx.parameters.Real(theta.lengthscales_D),
    variance=gpx.parameters.Real(theta.amplitude**2),
  )
  if groups:
    # Merged losses are nearly quadratic in the weights.
    kernel += gpx.kernels.Polynomial(
      active_dims=columns,
      degree=2,
      shift=0.5 * theta.trend,
      variance=gpx.parameters.Real(theta.trend / groups),
    )
  if width > dimension + 1:
    kernel = with_slopes(kernel, dimension)
  # A padded row has no covariance with anything: with target 0 and noise 1 it
  # adds a constant to the evidence and nothing to a prediction.
  mask = gpx.kernels.Linear(
    active_dims=[dimension], variance=gpx.parameters.Real(1.0)
  )
  return kernel * mask


def condition(
  theta: Hyperparameters, data: Padded, groups: int, extra: Array | float = 0.0
) -> Any:
  """GPJax's exact posterior of standardised rows, masked.

  `groups` simplices (0: a box); `extra` variance is added to every row.
  """
  gpx = gpjax()
  dimension = theta.lengthscales_D.shape[0]
  mask_N = data.rows_NxE[:, dimension]
  fitted = theta.noise**2 + _SMALLEST_NOISE_STD**2
  if data.rows_NxE.shape[1] > dimension + 1:
    # White noise of that size over a lengthscale is this much slope.
    along_NxD = data.rows_NxE[:, dimension + 1 :]
    slope_N = jnp.sum((along_NxD / theta.lengthscales_D) ** 2, axis=-1)
    fitted = fitted * jnp.where(jnp.any(along_NxD != 0, axis=-1), slope_N, 1.0)
  known_N = jnp.where(mask_N > 0, theta.share**2 * data.noise_N, 1.0)
  noise_N = known_N + (fitted + extra) * mask_N
  prior = gpx.gps.Prior(
    kernel=_kernel(theta, groups, data.rows_NxE.shape[1]),
    mean_function=gpx.mean_functions.Zero(),
    jitter=_JITTER,
  )
  likelihood = gpx.likelihoods.Gaussian(obs_stddev=jnp.sqrt(noise_N))
  train = gpx.Dataset(X=data.rows_NxE, y=data.values_N[:, None])
  return (prior * likelihood).condition(train)


def _lowest_finite(rungs: Array, function: Callable[[Array], Array]) -> Array:
  """The first rung at which a function is all finite, else the last."""

  def is_broken(i: Array) -> Array:
    finite = jnp.all(jnp.isfinite(function(rungs[i])))
    return ~finite & (i < len(rungs) - 1)

  return rungs[jax.lax.while_loop(is_broken, lambda i: i + 1, jnp.asarray(0))]


def condition_safely(theta: Hyperparameters, data: Padded, groups: int) -> Any:
  """The posterior at the lowest rung of the jitter ladder that is finite."""
  return condition(theta, data, groups, safe_extra(theta, data, groups))


def safe_extra(theta: Hyperparameters, data: Padded, groups: int) -> Array:
  """The lowest rung of the ladder at which the posterior is finite."""
  return _lowest_finite(
    jnp.asarray(_LADDER),
    lambda extra: condition(theta, data, groups, extra).log_marginal_likelihood,
  )


def fit(data: Padded, dimension: int, groups: int) -> Hyperparameters:
  """Maximum a posteriori hyperparameters, by L-BFGS from a few starts."""
  gpx = gpjax()

  def loss(unit_T: Array, _: object) -> Array:
    # unit_T is whitened by the prior: well scaled for L-BFGS.
    theta = hyperparameters(unit_T, dimension, groups)
    evidence = condition(theta, data, groups).log_marginal_likelihood
    return 0.5 * jnp.sum(unit_T**2) - evidence

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

  # One pair, or one coordinate, has one distance.
  own = dimension if dimension > (2 if groups else 1) else 0
  starts_SxT = jnp.pad(jnp.asarray(_STARTS), ((0, 0), (0, own)))
  units_SxT, losses_S = jax.vmap(descend)(starts_SxT)
  losses_S = jnp.where(jnp.isfinite(losses_S), losses_S, jnp.inf)
  best_T = units_SxT[jnp.argmin(losses_S)]
  # No start converged: the prior medians are still usable.
  best_T = jnp.where(jnp.all(jnp.isfinite(best_T)), best_T, 0.0)
  return hyperparameters(best_T, dimension, groups)


def _value_rows(queries_QxD: Array, posterior: Any) -> Array:
  """Rows that ask for the value at each query."""
  width = posterior.train_data.X.shape[1]
  count, dimension = queries_QxD.shape
  rest = np.zeros((count, width - dimension))
  rest[:, 0] = 1.0
  return jnp.concatenate([queries_QxD, rest], axis=-1)


def predict(posterior: Any, queries_QxD: Array) -> tuple[Array, Array]:
  """Posterior mean and standard deviation of f (not of a noisy score)."""
  rows_QxE = _value_rows(queries_QxD, posterior)
  predictive = posterior(rows_QxE, covariance="diagonal")
  return predictive.mean, jnp.sqrt(jnp.maximum(predictive.variance, _JITTER))


def draw(posterior: Any, queries_QxD: Array, normals_Q: Array) -> Array:
  """One joint draw of f at the queries (Q), from standard normal numbers."""
  rows_QxE = _value_rows(queries_QxD, posterior)
  predictive = posterior(rows_QxE, covariance="dense")
  covariance = predictive.covariance_matrix
  # Its own ladder: queries are as near to each other as they like.
  scale = jnp.mean(jnp.diag(covariance))
  rungs = jnp.asarray((1e-9, 1e-7, 1e-5, 1e-3)) * scale
  eye = jnp.eye(len(normals_Q))

  def factor(extra: Array) -> Array:
    return jnp.linalg.cholesky(covariance + extra * eye)

  lower = factor(_lowest_finite(rungs, factor))
  return predictive.mean + lower @ normals_Q
