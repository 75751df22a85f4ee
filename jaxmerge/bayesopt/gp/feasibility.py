"""Constraints c_t(x) <= 0, each a Gaussian process of its margin -c_t.

T constraints, N rows (padded), D coordinates, Q queries. All of it but
`standardised` is part of a jitted program.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmerge.bayesopt.gp import model, padding, pattern_search
from jaxmerge.bayesopt.gp.acquisition import log_feasible
from jaxmerge.bayesopt.gp.padding import Observations, Padded


class Margins(NamedTuple):
  """Standardised margins of all constraints.

  Attributes:
    data: with T in front in each array.
    least_T: the margin 0.
  """

  data: Padded
  least_T: Any


def standardised(
  margins: Sequence[Observations], groups: int
) -> Margins | None:
  """Pads the margins of the same trials; None where there are no constraints.

  Args:
    margins: observations of each, without gradients.
    groups: so many simplices side by side; 0: the unit box.
  """
  found, least = [], []
  for each in margins:
    tangents = pattern_search.tangents(each.points_NxD.shape[1], groups)
    centre, scale = padding.standardisation(each, tangents)
    found.append(padding.pad(each, centre, scale, tangents))
    least.append(-centre / scale)
  if not found:
    return None
  stacked = Padded(*(np.stack(parts) for parts in zip(*found, strict=True)))
  return Margins(stacked, np.array(least))


class Fitted:
  """Gaussian processes of the margins, independent of each other.

  Rows without a score yet count as observed at their posterior mean, as those
  of the objective do.
  """

  def __init__(self, margins: Margins, dimension: int, groups: int):
    self._least_T = margins.least_T
    self._groups = groups
    seen = jax.vmap(lambda data: padding.observed(data, dimension))(
      margins.data
    )
    # One after the other: side by side all take the steps of the longest.
    self._theta = jax.lax.map(
      lambda data: model.fit(data, dimension, groups), seen
    )
    self._data = seen
    self._extra_T = self._safe_extra()
    points_NxD = margins.data.rows_NxE[0, :, :dimension]
    believed_TxN, _ = self.margins(points_NxD)
    self._data = margins.data._replace(
      values_N=jnp.where(
        margins.data.pending_N > 0, believed_TxN, margins.data.values_N
      )
    )
    self._extra_T = self._safe_extra()

  def _safe_extra(self) -> Array:
    found: Array = jax.vmap(
      lambda theta, data: model.safe_extra(theta, data, self._groups)
    )(self._theta, self._data)
    return found

  def margins(self, queries_QxD: Array) -> tuple[Array, Array]:
    """Posterior mean and standard deviation of each margin (TxQ)."""

    # GPJax's posteriors cannot be stacked: each is conditioned anew.
    def predict(
      theta: model.Hyperparameters, data: Padded, extra: Array
    ) -> tuple[Array, Array]:
      posterior = model.condition(theta, data, self._groups, extra)
      return model.predict(posterior, queries_QxD)

    found: tuple[Array, Array] = jax.vmap(predict)(
      self._theta, self._data, self._extra_T
    )
    return found

  def log_probability(self, queries: Array) -> Array:
    """log P at queries of any shape (..., D)."""
    found_Q = log_feasible(
      *self.margins(queries.reshape(-1, queries.shape[-1])), self._least_T
    )
    return found_Q.reshape(queries.shape[:-1])

  def merit(self, points_NxD: Array, merit_N: Array) -> Array:
    """Merits of trials as incumbents; -inf of those that are none.

    Those count whose margins are on average high enough, by their merit; while
    there is none of them, all by log P.

    Args:
      points_NxD: of the trials.
      merit_N: -inf of rows that are no values.
    """
    mean_TxN, std_TxN = self.margins(points_NxD)
    is_kept_N = jnp.all(mean_TxN >= self._least_T[:, None], axis=0)
    kept_N = jnp.where(is_kept_N, merit_N, -jnp.inf)
    self._has_kept = jnp.any(kept_N > -jnp.inf)
    log_N = log_feasible(mean_TxN, std_TxN, self._least_T)
    log_N = jnp.where(merit_N > -jnp.inf, log_N, -jnp.inf)
    return jnp.where(self._has_kept, kept_N, log_N)

  def weighted(self, log_utility: Array, log_p: Array) -> Array:
    """An acquisition times P, by logarithms; P alone without an incumbent.

    To be called after `merit`.
    """
    return jnp.where(self._has_kept, log_utility + log_p, log_p)

  def reward(
    self, nominees_JxD: Array, rewards_J: Array, worst: Array
  ) -> Array:
    """Hedge's rewards, expected: what breaks a constraint is like the worst."""
    p_J = jnp.exp(self.log_probability(nominees_JxD))
    return p_J * rewards_J + (1 - p_J) * worst
