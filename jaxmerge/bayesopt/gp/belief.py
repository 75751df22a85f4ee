"""The belief of a suggestion: Gaussian processes of scores and constraints.

N rows (padded), D coordinates, J acquisitions, Q queries. Part of a jitted
program.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxmerge.bayesopt.gp import model, padding
from jaxmerge.bayesopt.gp.acquisition import Acquisition, log_gain, log_utility
from jaxmerge.bayesopt.gp.feasibility import Fitted, Margins
from jaxmerge.bayesopt.gp.padding import Padded


class Belief(NamedTuple):
  """Posteriors of one fit, and the trial to improve on.

  Attributes:
    observed: the posterior given the trials that have a score.
    posterior: where pending ones count as observed at their posterior mean
      (kriging believer: Ginsbourger, Le Riche and Carraro 2010, "Kriging is
      well-suited to parallelize optimization", section 4).
    limits: of the constraints; None without any.
    incumbent_D: the trial of the best posterior mean: the best observed score
      where scores are exact, not its luckiest one where not.
    best, worst: posterior means of the incumbent and of the worst trial.
    share: of a known standard error that is taken for noise.
  """

  observed: Any
  posterior: Any
  limits: Fitted | None
  incumbent_D: Array
  best: Array
  worst: Array
  share: Array

  @classmethod
  def of(
    cls, data: Padded, margins: Margins | None, dimension: int, groups: int
  ) -> "Belief":
    """Fits all Gaussian processes.

    Args:
      data, margins: padded and standardised.
      dimension: D.
      groups: so many simplices side by side; 0: the unit box.
    """
    points_NxD = data.rows_NxE[:, :dimension]
    seen = padding.observed(data, dimension)
    theta = model.fit(seen, dimension, groups)
    observed = model.condition_safely(theta, seen, groups)
    believed_N, _ = model.predict(observed, points_NxD)
    values_N = jnp.where(data.pending_N > 0, believed_N, data.values_N)
    data = data._replace(values_N=values_N)
    posterior = model.condition_safely(theta, data, groups)
    is_slope_N = jnp.any(data.rows_NxE[:, dimension + 1 :] != 0, axis=1)
    is_value_N = (data.rows_NxE[:, dimension] > 0) & ~is_slope_N
    mean_N, _ = model.predict(posterior, points_NxD)
    merit_N = jnp.where(is_value_N, mean_N, -jnp.inf)
    limits = None
    if margins is not None:
      limits = Fitted(margins, dimension, groups)
      merit_N = limits.merit(points_NxD, merit_N)
    incumbent = jnp.argmax(merit_N)
    worst = jnp.min(jnp.where(is_value_N, mean_N, jnp.inf))
    incumbent_D, best = points_NxD[incumbent], mean_N[incumbent]
    return cls(
      observed, posterior, limits, incumbent_D, best, worst, theta.share
    )

  def log_probability(self, queries: Array) -> Array | None:
    """Log P at queries of any shape (..., D); None without constraints."""
    return self.limits.log_probability(queries) if self.limits else None

  def rewards(self, nominees_JxD: Array) -> Array:
    """Hedge's rewards of earlier nominees."""
    mean_J, _ = model.predict(self.observed, nominees_JxD)
    if self.limits is None:
      return mean_J
    return self.limits.reward(nominees_JxD, mean_J, self.worst)

  def utility(self, a: Acquisition, log: Any, mean: Any, std: Any) -> Array:
    """An acquisition's, times P, at points of this log P and posterior."""
    assert a.utility is not None
    if self.limits is None:
      return a.utility(mean, std, self.best)
    return self.limits.weighted(log_utility(a, mean, std, self.best), log)

  def worth(self, drawn_Q: Array, queries_QxD: Array) -> Array:
    """The gain of a Thompson draw, times P; the draw without constraints."""
    if self.limits is None:
      return drawn_Q
    log_Q = self.limits.log_probability(queries_QxD)
    return self.limits.weighted(log_gain(drawn_Q - self.best), log_Q)
