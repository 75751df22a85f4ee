"""TIES: task vectors without what is small or at odds."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.config_fields import PerInput, key
from jaxmerge.merging.method import Tensors, merge_method, of_input
from jaxmerge.merging.methods.task_arithmetic import TaskKnobs


@dataclasses.dataclass(frozen=True)
class TiesKnobs(TaskKnobs):
  density: PerInput = key(
    0.2, "share of each task vector that is kept", above=0, at_most=1
  )


@merge_method(
  "ties",
  "task vectors trimmed to `density`, signs elected, what agrees averaged"
  " (arXiv 2306.01708)",
  acts="per tensor",
  knobs=TiesKnobs,
  weights="optional",
  weights_are="shares",
  least=1,
)
def ties(
  tensors: Tensors, weights_K: jax.Array, knobs: Any, base: Any
) -> jax.Array:
  """Trim, elect signs, merge what agrees (Yadav et al., arXiv 2306.01708).

  Keep the share `density` of largest |tau_i|; the sign of an entry is that of
  sum_i w_i tau_i over what is kept; theta_0 + scale times the weighted mean of
  the kept entries of that sign.
  """
  taus = jnp.stack(
    [
      _trimmed(end - base, of_input(knobs.density, k))
      for k, end in enumerate(tensors)
    ]
  )
  return base + knobs.scale * _agreed(taus, weights_K)


def _trimmed(tau: jax.Array, density: float) -> jax.Array:
  """The entries of largest magnitude, the others zero; ties are kept."""
  if not tau.size:
    return tau
  kept = max(math.ceil(density * tau.size), 1)
  magnitude = jnp.abs(tau)
  threshold = jnp.sort(magnitude.ravel())[tau.size - kept]
  return jnp.where(magnitude >= threshold, tau, 0.0)


def _agreed(taus: jax.Array, weights_K: jax.Array) -> jax.Array:
  """Weighted mean of the entries that have the elected sign."""
  weight = weights_K.reshape(-1, *[1] * (taus.ndim - 1))
  elected = jnp.sign(jnp.sum(weight * taus, axis=0))
  agrees = (jnp.sign(taus) == elected) & (taus != 0)
  total = jnp.sum(jnp.where(agrees, weight * taus, 0.0), axis=0)
  count = jnp.sum(jnp.where(agrees, weight, 0.0), axis=0)
  return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0)
