"""Model Stock: how far to go from the base to the mean, layer by layer."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.errors import InputError
from jaxmerge.merging.average import check_equal_trees
from jaxmerge.merging.slices import map_slices

_TINY = 1e-12


def model_stock(base: Any, trees: Sequence[Any]) -> Any:
  """t mean_i theta_i + (1 - t) theta_0 for each tensor.

  Jang et al., arXiv 2403.19522: with cos the mean cosine between pairs of the
  K task vectors theta_i - theta_0, t = K cos / (1 + (K - 1) cos), the point on
  the way to the mean that is nearest to the centre of the solutions.

  Args:
    base: theta_0.
    trees: two or more pytrees of the base's structure, shapes and dtypes.

  Raises:
    InputError: fewer than two trees, or they differ.
  """
  if len(trees) < 2:
    raise InputError(f"model_stock takes two trees or more, got {len(trees)}")
  check_equal_trees([base, *trees])
  return _model_stock(base, tuple(trees))


@jax.jit
def _model_stock(base: Any, trees: tuple[Any, ...]) -> Any:
  return map_slices(_towards_mean, base, *trees)


def _towards_mean(start: jax.Array, *ends: jax.Array) -> jax.Array:
  count = len(ends)
  taus_KxE = jnp.stack([(end - start).ravel() for end in ends])
  lengths_Kx1 = jnp.linalg.norm(taus_KxE, axis=1, keepdims=True)
  units_KxE = taus_KxE / jnp.maximum(lengths_Kx1, _TINY)
  # The sum over pairs from the sum over all: sum_ij - sum_i.
  total_E = jnp.sum(units_KxE, axis=0)
  own = jnp.sum(units_KxE**2)
  cosine = (jnp.vdot(total_E, total_E) - own) / (count * (count - 1))
  # Task vectors that point away from each other have no common way: stay.
  cosine = jnp.maximum(cosine, 0.0)
  t = count * cosine / (1 + (count - 1) * cosine)
  mean = jnp.mean(jnp.stack(ends), axis=0)
  return t * mean + (1 - t) * start
