"""Matrices of the slopes of logits around their means, and their sums.

Parts of the vocabulary are put together by the rule for covariances of Chan,
Golub and LeVeque (1979): each is centred before its product.

B sequences, C positions, P padded vocabulary, S of its columns; R directions.
"""

import jax
import jax.numpy as jnp

from jaxmerge.model.tangents import HIGHEST

# The sum of shares, B x C; the mean slopes, R x B x C; the matrix around these,
# summed over the tokens that count, R x R.
Moments = tuple[jax.Array, jax.Array, jax.Array]


def curvature_of_slopes(
  logits_BxCxP: jax.Array, slopes: jax.Array, mask_BxC: jax.Array
) -> jax.Array:
  """Sum over tokens of sum_v p_v (J_v - Jbar)(J_v - Jbar)^T.

  Args:
    logits_BxCxP: -inf where padding is.
    slopes: J = d logits / d weights, R x B x C x P; finite.
    mask_BxC: bool, the tokens that count.

  Returns:
    float32[R, R].
  """
  shares_BxCxP = jax.nn.softmax(logits_BxCxP, axis=-1)
  return moments_of(shares_BxCxP, slopes, mask_BxC)[2]


def moments_of(
  shares_BxCxS: jax.Array, slopes: jax.Array, mask_BxC: jax.Array
) -> Moments:
  """The sum of shares, the mean slopes (R x B x C), the matrix around it."""
  total_BxC = jnp.sum(shares_BxCxS, axis=-1)
  means = jnp.sum(shares_BxCxS * slopes, axis=-1) / _positive(total_BxC)
  roots_BxCxS = jnp.sqrt(jnp.where(mask_BxC[..., None], shares_BxCxS, 0.0))
  # Centred before the product: a shift that all logits share is no change.
  centred = roots_BxCxS * (slopes - means[..., None])
  found = jnp.einsum("ibcs,jbcs->ij", centred, centred, precision=HIGHEST)
  return total_BxC, means, found


def together(some: Moments, others: Moments, mask_BxC: jax.Array) -> Moments:
  """Moments of all that two are of."""
  (one_BxC, means, found), (other_BxC, other_means, other_found) = some, others
  total_BxC = one_BxC + other_BxC
  part_BxC = other_BxC / _positive(total_BxC)
  apart = other_means - means
  weight_BxC = jnp.where(mask_BxC, one_BxC * part_BxC, 0.0)
  weighted = jnp.sqrt(weight_BxC) * apart
  between = jnp.einsum("ibc,jbc->ij", weighted, weighted, precision=HIGHEST)
  return total_BxC, means + apart * part_BxC, found + other_found + between


def _positive(array: jax.Array) -> jax.Array:
  return jnp.where(array > 0, array, 1.0)
