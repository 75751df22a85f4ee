"""RegMean: linear layers that answer as each model does on its own inputs.

K trees, U of them with a weight; D inputs and E outputs of a linear layer.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.config_fields import key
from jaxmerge.merging.average import weighted_average
from jaxmerge.merging.method import merge_method
from jaxmerge.parallel.rules import is_stacked, named_leaves

_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class RegMeanKnobs:
  off_diagonal: float = key(
    0.9,
    "factor of the Gram matrices' off-diagonal entries",
    at_least=0,
    at_most=1,
  )


def _ask(graph: Any, params: Any, tokens: Any, mask: Any, _: Any) -> Any:
  # With Flax, which no method that averages needs.
  from jaxmerge.merging.grams import layer_grams

  return layer_grams(graph, params, tokens, mask)


@merge_method(
  "regmean",
  "each linear layer W = (sum w G)^-1 sum w G W_i, G = X^T X of that layer's"
  " inputs on the search split with its off-diagonal entries times"
  " `off_diagonal`; all else averaged (RegMean, arXiv 2212.09849)",
  acts="on models",
  knobs=RegMeanKnobs,
  weights="optional",
  weights_are="shares",
  ask=_ask,
)
def regmean(
  trees: Sequence[Any],
  grams: Sequence[dict[str, jax.Array]],
  weights_K: Sequence[float],
  knobs: RegMeanKnobs,
) -> Any:
  """W = (sum_i w_i G~_i)^-1 sum_i w_i G~_i W_i; what is not linear, averaged.

  Jin et al., arXiv 2212.09849: G_i = X_i^T X_i, its entries off the diagonal
  times `off_diagonal` in G~_i. At a factor of 1, W has the least
  sum_i w_i |X_i W - X_i W_i|^2; of equally good ones that nearest to the
  average, each input measured in its own size.

  `grams` are from layer_grams, `off_diagonal` is the paper's alpha. Raises
  InputError where the trees differ.
  """
  averaged = weighted_average(trees, weights_K)
  used = [k for k, w in enumerate(weights_K) if w != 0]
  if len(used) == 1:
    return averaged
  mean, *leaves = (named_leaves(tree) for tree in (averaged, *trees))
  shares_U = jnp.asarray([weights_K[k] for k in used], jnp.float32)
  for name in grams[0]:
    # A program for each, and in it one matrix at a time: XLA may wait for
    # ever on a CPU when several batches of factorisations run side by side.
    mean[name] = _regress(
      is_stacked(name),
      mean[name],
      tuple(leaves[k][name] for k in used),
      tuple(grams[k][name] for k in used),
      shares_U,
      jnp.float32(knobs.off_diagonal),
    )
  return jax.tree.unflatten(jax.tree.structure(averaged), mean.values())


@functools.partial(jax.jit, static_argnums=0)
def _regress(
  stacked: bool,
  mean: jax.Array,
  kernels: tuple[jax.Array, ...],
  grams: tuple[jax.Array, ...],
  shares_U: jax.Array,
  off_diagonal: jax.Array,
) -> jax.Array:
  def solve(slices: tuple[Any, ...]) -> jax.Array:
    start, kernels, grams = slices
    start_DxE = start.astype(jnp.float32)
    is_diagonal = jnp.eye(len(start_DxE), dtype=bool)
    kept_DxD = jnp.where(is_diagonal, 1.0, off_diagonal)
    total_DxD, pull_DxE = jnp.zeros_like(kept_DxD), jnp.zeros_like(start_DxE)
    # From the mean on, so that rounding and the ridge move nothing that the
    # models agree on.
    for w, kernel_DxE, gram_DxD in zip(shares_U, kernels, grams):
      gram_DxD = w * kept_DxD * gram_DxD
      total_DxD += gram_DxD
      pull_DxE += jnp.matmul(
        gram_DxD, kernel_DxE - start_DxE, precision="highest"
      )
    return (start_DxE + _solve(total_DxD, pull_DxE)).astype(start.dtype)

  slices = (mean, kernels, grams)
  return jax.lax.map(solve, slices) if stacked else solve(slices)


def _solve(gram_DxD: jax.Array, right_DxE: jax.Array) -> jax.Array:
  """gram^-1 right, scaled first: inputs differ by orders of magnitude.

  An input that is always zero gives zeros.
  """
  diagonal_D = jnp.diagonal(gram_DxD)
  is_zero_D = diagonal_D <= _TINY
  # Masked before the root, so that nothing is infinite.
  scale_D = 1 / jnp.sqrt(jnp.where(is_zero_D, 1.0, diagonal_D))
  scale_Dx1 = jnp.where(is_zero_D, 0.0, scale_D)[:, None]
  unit_DxD = jnp.where(
    jnp.eye(len(gram_DxD), dtype=bool),
    1.0,
    scale_Dx1 * gram_DxD * scale_Dx1.T,
  )
  factor = (_cholesky(unit_DxD), True)
  return scale_Dx1 * jax.scipy.linalg.cho_solve(factor, scale_Dx1 * right_DxE)


def _cholesky(unit_DxD: jax.Array) -> jax.Array:
  """Factors H + r I, H with a diagonal of ones, r the least that succeeds.

  No square of a pivot of H + r I is below r. Where rounding takes one below
  r / 2, or to NaN, r grows tenfold; it starts at D roundings.
  """
  size = len(unit_DxD)

  def factor(ridge: jax.Array) -> tuple[jax.Array, jax.Array]:
    return ridge, jnp.linalg.cholesky(unit_DxD + ridge * jnp.eye(size))

  def is_lost(state: tuple[jax.Array, jax.Array]) -> jax.Array:
    ridge, lower_DxD = state
    squares_D = jnp.diagonal(lower_DxD) ** 2
    # At r = D only a Gram that is not finite is left.
    return ~jnp.all(squares_D > ridge / 2) & (ridge < size)

  first = factor(jnp.float32(size * jnp.finfo(jnp.float32).eps))
  _, lower_DxD = jax.lax.while_loop(
    is_lost, lambda state: factor(10 * state[0]), first
  )
  return lower_DxD
