"""Acquisition functions of a Gaussian posterior, in maximisation form.

Q queries. Targets are standardised, so `xi` is in units of their standard
deviation and `kappa` in posterior standard deviations. Everything here is a
pure function of arrays and can be jitted.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import log_ndtr, ndtr
from jax.scipy.stats import norm

from jaxmerge.registry import Registry

XI = 0.0
KAPPA = 1.96

# Below this z the direct form of h(z) loses digits; two dozen terms of the
# continued fraction are exact to a double from here on.
_TAIL = -5.0
_NUM_TERMS = 24


def _log_h(z: Array) -> Array:
  """log(phi(z) + z Phi(z)) for every finite z, without cancellation.

  In the tail, with t = -z and Mills' ratio Phi(z) / phi(z) = 1 / (t + c),
  c = 1/(t + 2/(t + 3/(t + ...))) (Abramowitz and Stegun 26.2.14),
  phi(z) + z Phi(z) = phi(z) c / (t + c): a product, not a difference.
  """
  is_tail = z < _TAIL
  # Masked before each branch, so that neither gives a NaN nor its gradient.
  body_z = jnp.where(is_tail, _TAIL, z)
  body = jnp.log(norm.pdf(body_z) + body_z * ndtr(body_z))
  t = jnp.where(is_tail, -z, -_TAIL)
  fraction = t
  for term in range(_NUM_TERMS, 1, -1):
    fraction = t + term / fraction
  tail = norm.logpdf(t) - jnp.log1p(t * fraction)
  return jnp.where(is_tail, tail, body)


def _safe_std(std: Array) -> Array:
  return jnp.where(std > 0, std, 1.0)


def log_expected_improvement(
  mean_Q: Array, std_Q: Array, best: Array | float, xi: float = XI
) -> Array:
  """log EI, -inf where std is 0 (Ament et al. 2023, arXiv 2310.20708)."""
  safe_std_Q = _safe_std(std_Q)
  z_Q = (mean_Q - best - xi) / safe_std_Q
  return jnp.where(std_Q > 0, jnp.log(safe_std_Q) + _log_h(z_Q), -jnp.inf)


def expected_improvement(
  mean_Q: Array, std_Q: Array, best: Array | float, xi: float = XI
) -> Array:
  """EI = (mean - best - xi) Phi(z) + std phi(z), and 0 where std is 0."""
  return jnp.exp(log_expected_improvement(mean_Q, std_Q, best, xi))


def log_probability_of_improvement(
  mean_Q: Array, std_Q: Array, best: Array | float, xi: float = XI
) -> Array:
  """log PI: it orders points that PI itself rounds to zero."""
  safe_std_Q = _safe_std(std_Q)
  return jnp.where(
    std_Q > 0, log_ndtr((mean_Q - best - xi) / safe_std_Q), -jnp.inf
  )


def probability_of_improvement(
  mean_Q: Array, std_Q: Array, best: Array | float, xi: float = XI
) -> Array:
  """PI = Phi((mean - best - xi) / std), and 0 where std is 0."""
  return jnp.exp(log_probability_of_improvement(mean_Q, std_Q, best, xi))


def upper_confidence_bound(
  mean_Q: Array, std_Q: Array, kappa: float = KAPPA
) -> Array:
  """UCB = mean + kappa std."""
  return mean_Q + kappa * std_Q


class Acquisition(NamedTuple):
  """What GP-Hedge must know of an acquisition.

  Attributes:
    name: in a config.
    summary: one line, with the reference.
    utility: of the posterior's mean and standard deviation at queries and the
      best mean so far, in JAX; the portfolio maximises it. None: the maximiser
      of one joint draw from the posterior is asked.
  """

  name: str
  summary: str
  utility: Callable[[Array, Array, Array], Array] | None


ACQUISITIONS: Registry[Acquisition] = Registry("acquisition")
# Monotone in EI, PI and UCB, never flat.
for _acquisition in (
  Acquisition(
    "ei", "log expected improvement (2310.20708)", log_expected_improvement
  ),
  Acquisition(
    "pi", "log probability of improvement", log_probability_of_improvement
  ),
  Acquisition(
    "ucb",
    f"upper confidence bound, kappa {KAPPA}",
    lambda mean_Q, std_Q, best: upper_confidence_bound(mean_Q, std_Q),
  ),
  Acquisition("thompson", "one joint draw (Thompson 1933)", None),
):
  ACQUISITIONS.register(_acquisition)
