"""RegMean: linear layers that answer as each model does on its own inputs.

K trees, U of them with a weight, N sequences, L targets; D inputs and E outputs
of a linear layer.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmerge.merging.average import (
  check_equal_trees,
  shares,
  weighted_average,
)
from jaxmerge.merging.slices import is_stacked
from jaxmerge.model.decoder import Decoder
from jaxmerge.parallel.rules import named_leaves

Grams = dict[str, jax.Array]

# The kernels that meet what passes at a place: what enters a linear layer,
# and what leaves the last norm for the head.
_LAST = "final_norm"
_MET_AT: Mapping[str, tuple[str, ...]] = {
  "layers/attention/query": (
    "layers/attention/query/kernel",
    "layers/attention/key/kernel",
    "layers/attention/value/kernel",
  ),
  "layers/attention/out": ("layers/attention/out/kernel",),
  "layers/mlp/up": ("layers/mlp/up/kernel", "layers/mlp/gate/kernel"),
  "layers/mlp/down": ("layers/mlp/down/kernel",),
  _LAST: ("head/kernel",),
}
_TINY = 1e-30


class _Watch(nnx.Module):
  """Hands on what it is given, and adds x x^T of what counts to a Gram."""

  def __init__(self, mask_BxL: jax.Array, gram_DxD: jax.Array):
    self.mask_BxL = nnx.Variable(mask_BxL)
    self.gram_DxD = nnx.Variable(gram_DxD)

  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    counted = jnp.where(self.mask_BxL[...][..., None], x_BxLxD, 0)
    counted = counted.astype(jnp.float32)
    self.gram_DxD[...] += jnp.einsum(
      "bld,ble->de", counted, counted, precision="highest"
    )
    return x_BxLxD


def layer_grams(
  graph: nnx.GraphDef,
  params: Any,
  tokens_NxL1: np.ndarray,
  mask_NxL: np.ndarray,
) -> Grams:
  """X^T X of the inputs of each linear layer, in float32.

  A head that is tied, or scaled to unit columns, is none. One sequence at a
  time; the decoder is as it always is, with watches put before its layers.

  Args:
    graph: structure of the decoder.
    params: its parameters.
    tokens_NxL1: int32, sequences to measure on.
    mask_NxL: positions that count.

  Returns:
    By name of the kernel, float32[D, D], of a stack one a layer. Kernels with
    the same inputs share the array.
  """
  regressed = _regressed(graph, params)
  leaves = named_leaves(params)
  zeros = {}
  for place, (name, *_) in regressed.items():
    *stack, size, _ = leaves[name].shape
    zeros[place] = jnp.zeros((*stack, size, size), jnp.float32)
  grams = _add_grams(
    graph, params, zeros, jnp.asarray(tokens_NxL1), jnp.asarray(mask_NxL)
  )
  return {name: grams[place] for place in grams for name in regressed[place]}


def _regressed(graph: nnx.GraphDef, params: Any) -> dict[str, list[str]]:
  """The kernels of a decoder that are linear layers, by place."""
  model: Decoder = nnx.merge(graph, params)
  leaves = named_leaves(params)
  found = {
    place: [name for name in names if name in leaves]
    for place, names in _MET_AT.items()
    if not (place == _LAST and model.config.unit_head)
  }
  return {place: names for place, names in found.items() if names}


@functools.partial(jax.jit, static_argnums=0)
def _add_grams(
  graph: nnx.GraphDef,
  params: Any,
  zeros: Grams,
  tokens_NxL1: jax.Array,
  mask_NxL: jax.Array,
) -> Grams:
  def add(
    total: Grams, sequence: tuple[jax.Array, jax.Array]
  ) -> tuple[Grams, None]:
    tokens_L1, mask_L = sequence
    model: Decoder = nnx.merge(graph, params)
    watches = {
      place: _put_watch(model, place, mask_L[None], gram)
      for place, gram in total.items()
    }
    model.padded_logits(tokens_L1[None, :-1])
    return {place: w.gram_DxD[...] for place, w in watches.items()}, None

  total, _ = jax.lax.scan(add, zeros, (tokens_NxL1, mask_NxL))
  return total


def _put_watch(
  model: Decoder, place: str, mask_BxL: jax.Array, gram: jax.Array
) -> _Watch:
  """Sees what enters the module at a place, or what leaves the last norm."""
  *parents, name = place.split("/")
  parent = functools.reduce(getattr, parents, model)
  if is_stacked(place):
    mask_BxL = jnp.broadcast_to(mask_BxL, (len(gram), *mask_BxL.shape))
  watch, module = _Watch(mask_BxL, gram), getattr(parent, name)
  order = (module, watch) if place == _LAST else (watch, module)
  setattr(parent, name, nnx.Sequential(*order))
  return watch


def regmean(
  trees: Sequence[Any],
  grams: Sequence[Grams],
  weights: Sequence[float],
  off_diagonal: float,
) -> Any:
  """W = (sum_i w_i G~_i)^-1 sum_i w_i G~_i W_i; what is not linear, averaged.

  Jin et al., arXiv 2212.09849: G_i = X_i^T X_i, its entries off the diagonal
  times `off_diagonal` in G~_i. At a factor of 1, W has the least
  sum_i w_i |X_i W - X_i W_i|^2; of equally good ones that nearest to the
  average, each input measured in its own size.

  Args:
    trees: K pytrees of equal structure, shapes and dtypes.
    grams: for each tree, from layer_grams; the same names in all.
    weights: K numbers >= 0; divided by their sum.
    off_diagonal: alpha of the paper, in [0, 1].

  Raises:
    InputError: the trees differ, or the weights are not usable.
  """
  check_equal_trees(trees)
  weights_K = shares(len(trees), weights)
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
      jnp.float32(off_diagonal),
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
  """Of H + r I, H with a diagonal of ones, r as small as float32 allows.

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
