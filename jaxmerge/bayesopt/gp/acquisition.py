"""Acquisition functions of a Gaussian posterior; which one GP-Hedge follows.

Q queries, J acquisitions; `best` is the value to improve on, in maximisation
form. Acquisitions are pure functions of arrays and can be jitted.

Hoffman, Brochu and de Freitas, "Portfolio Allocation for Bayesian
Optimization", UAI 2011, algorithm 2: after each refit the gain of acquisition j
grows by the posterior mean at its previous nominee, evaluated or not. Gains are
in standardised units and maximisation sign: in the raw units of an accuracy
they would never part (a fair coin).

Where constraints c_t(x) <= 0 are modelled by Gaussian processes of their own,
an acquisition is weighted by the probability that all hold (Gardner et al.,
"Bayesian Optimization with Inequality Constraints", ICML 2014, equation 5;
Gelbart, Snoek and Adams, "Bayesian Optimization with Unknown Constraints", UAI
2014, section 3):

  EI_c(x) = EI(x) P(x),   P(x) = prod_t Pr[c_t(x) <= 0] = prod_t Phi(m_t / s_t)

with m_t, s_t the mean and the standard deviation of the margin -c_t at x; the
improvement is over the best point that is feasible on average. While there is
none, P(x) alone is maximised (Gelbart et al., section 3.1).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import log_ndtr, ndtr
from jax.scipy.stats import norm

from jaxmerge.registry import Registry

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


def log_expected_improvement(
  mean_Q: Array, std_Q: Array, best: Array | float
) -> Array:
  """log EI, -inf where std is 0 (Ament et al. 2023, arXiv 2310.20708).

  EI = (mean - best) Phi(z) + std phi(z), with z = (mean - best) / std.
  """
  safe_std_Q = jnp.where(std_Q > 0, std_Q, 1.0)
  log_h_Q = _log_h((mean_Q - best) / safe_std_Q)
  return jnp.where(std_Q > 0, jnp.log(safe_std_Q) + log_h_Q, -jnp.inf)


def log_probability_of_improvement(
  mean_Q: Array, std_Q: Array, best: Array | float
) -> Array:
  """log Phi(z), -inf where std is 0: it orders points whose PI rounds to 0."""
  z_Q = (mean_Q - best) / jnp.where(std_Q > 0, std_Q, 1.0)
  return jnp.where(std_Q > 0, log_ndtr(z_Q), -jnp.inf)


def upper_confidence_bound(
  mean_Q: Array, std_Q: Array, best: Array | float = 0.0
) -> Array:
  """UCB = mean + kappa std, whatever the best is."""
  del best
  return mean_Q + KAPPA * std_Q


class Acquisition(NamedTuple):
  """One acquisition of GP-Hedge's portfolio.

  Attributes:
    name: in a config.
    summary: one line, with the reference.
    utility: of the posterior's mean and standard deviation at queries and the
      best mean so far, in JAX; it is maximised. None: one joint draw from the
      posterior is.
    is_log: the utility is the logarithm of what is worth 0 at least.
  """

  name: str
  summary: str
  utility: Callable[[Array, Array, Array], Array] | None
  is_log: bool = False


ACQUISITIONS: Registry[Acquisition] = Registry("acquisition")
# Monotone in EI, PI and UCB, never flat.
for _name, _utility, _summary, _is_log in (
  ("ei", log_expected_improvement, "log expected improvement (2310.20708)", 1),
  ("pi", log_probability_of_improvement, "log probability of improvement", 1),
  ("ucb", upper_confidence_bound, f"upper confidence bound, kappa {KAPPA}", 0),
  ("thompson", None, "one joint draw (Thompson 1933)", 0),
):
  ACQUISITIONS.register(Acquisition(_name, _summary, _utility, bool(_is_log)))

# A gain is no less, so that its logarithm is finite.
_LEAST_GAIN = 1e-12


def log_feasible(mean_TxQ: Array, std_TxQ: Array, least_T: Array) -> Array:
  """log P(x): the probability (Q) that T independent margins are high enough.

  Args:
    mean_TxQ, std_TxQ: of each margin at the queries.
    least_T: how high each must be.
  """
  safe = jnp.where(std_TxQ > 0, std_TxQ, 1.0)
  return jnp.sum(log_ndtr((mean_TxQ - least_T[:, None]) / safe), axis=0)


def log_utility(
  acquisition: Acquisition, mean: Array, std: Array, best: Array
) -> Array:
  """The logarithm of an acquisition, to which log P can be added.

  EI and PI are expectations of what is worth nothing where a constraint is
  broken. An upper confidence bound is none, and may be negative: what counts is
  by how much it is above that of the incumbent, were its score known for sure;
  so of every other utility that is no logarithm.

  Args:
    acquisition: with a utility.
    mean, std: of the posterior at queries, of any shape.
    best: posterior mean of the best feasible point.
  """
  assert acquisition.utility is not None
  found = acquisition.utility(mean, std, best)
  if acquisition.is_log:
    return found
  sure = acquisition.utility(best, jnp.zeros_like(best), best)
  return log_gain(found - sure)


def log_gain(gain: Array) -> Array:
  """Its logarithm, bounded from below where there is none."""
  return jnp.log(jnp.maximum(gain, _LEAST_GAIN))


def probabilities(gains_J: np.ndarray) -> np.ndarray:
  """p = softmax(g), with the paper's eta = 1."""
  odds_J = np.exp(gains_J - np.max(gains_J))
  return odds_J / odds_J.sum()


def preference(gains_J: np.ndarray, rng: np.random.Generator) -> list[int]:
  """The drawn acquisition first, then the others, likeliest first."""
  p_J = probabilities(gains_J)
  chosen = int(rng.choice(len(p_J), p=p_J))
  by_odds = np.argsort(-p_J, kind="stable").tolist()
  return [chosen, *(j for j in by_odds if j != chosen)]
