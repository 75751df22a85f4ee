"""Model Stock: how far to go from the base to the mean."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.merging.method import BaseKnobs, Tensors, merge_method

_TINY = 1e-12


@merge_method(
  "model_stock",
  "from `base` towards the mean, as far as the angles say (arXiv 2403.19522)",
  acts="per tensor",
  knobs=BaseKnobs,
)
def model_stock(
  tensors: Tensors, weights_K: jax.Array, knobs: Any, base: Any
) -> jax.Array:
  """t mean_i theta_i + (1 - t) theta_0.

  Jang et al., arXiv 2403.19522: with cos the mean cosine between pairs of the
  K task vectors theta_i - theta_0, t = K cos / (1 + (K - 1) cos), the point on
  the way to the mean that is nearest to the centre of the solutions.
  """
  count = len(tensors)
  taus_KxE = jnp.stack([(end - base).ravel() for end in tensors])
  lengths_Kx1 = jnp.linalg.norm(taus_KxE, axis=1, keepdims=True)
  units_KxE = taus_KxE / jnp.maximum(lengths_Kx1, _TINY)
  # The sum over pairs from the sum over all: sum_ij - sum_i.
  total_E = jnp.sum(units_KxE, axis=0)
  own = jnp.sum(units_KxE**2)
  cosine = (jnp.vdot(total_E, total_E) - own) / (count * (count - 1))
  # Task vectors that point away from each other have no common way: stay.
  cosine = jnp.maximum(cosine, 0.0)
  t = count * cosine / (1 + (count - 1) * cosine)
  mean = jnp.mean(jnp.stack(tensors), axis=0)
  return t * mean + (1 - t) * base
