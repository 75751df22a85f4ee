"""SLERP: along the arc between two tensors, each a vector of its entries."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.merging.method import Tensors, merge_method

# Above this cosine the arc is a line to float32.
_PARALLEL = 0.9995
_TINY = 1e-12


@merge_method(
  "slerp",
  "along the arc between two tensors, --weights=t or 1-t,t (Shoemake 1985)",
  acts="per tensor",
  weights="required",
  most=2,
)
def slerp(tensors: Tensors, weights_K: jax.Array, knobs: Any) -> jax.Array:
  """[sin((1 - t) w) a + sin(t w) b] / sin w, w the angle between a and b.

  Shoemake 1985; nearly parallel or vanishing tensors are averaged along the
  line. The weights are (1 - t, t).
  """
  a, b = tensors
  t = weights_K[1]
  lengths = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
  cosine = jnp.vdot(a, b) / jnp.maximum(lengths, _TINY)
  is_line = (jnp.abs(cosine) > _PARALLEL) | (lengths <= _TINY)
  # Masked before the division, so that no branch is infinite.
  angle = jnp.arccos(jnp.where(is_line, 0.0, cosine))
  sine = jnp.sin(angle)
  arc = (jnp.sin((1 - t) * angle) * a + jnp.sin(t * angle) * b) / sine
  return jnp.where(is_line, (1 - t) * a + t * b, arc)
