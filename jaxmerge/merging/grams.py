"""Gram matrices of what enters the linear layers of a decoder, for RegMean.

N sequences, L targets; D inputs of a linear layer.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmerge.model.decoder import Decoder
from jaxmerge.parallel.rules import is_stacked, named_leaves

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

  Returns:
    By name of the kernel, float32[D, D], of a stack one a layer, over the
    positions of the mask. Kernels with the same inputs share the array.
  """
  config = nnx.merge(graph, params).config
  leaves = named_leaves(params)
  regressed, zeros = {}, {}
  for place, names in _MET_AT.items():
    names = tuple(name for name in names if name in leaves)
    if names and not (place == _LAST and config.unit_head):
      *stack, size, _ = leaves[names[0]].shape
      zeros[place] = jnp.zeros((*stack, size, size), jnp.float32)
      regressed[place] = names
  grams = _add_grams(graph, params, zeros, (tokens_NxL1, mask_NxL))
  return {name: grams[place] for place in grams for name in regressed[place]}


@functools.partial(jax.jit, static_argnums=0)
def _add_grams(
  graph: nnx.GraphDef, params: Any, zeros: Grams, sequences: Any
) -> Grams:
  def add(total: Grams, sequence: Any) -> tuple[Grams, None]:
    tokens_L1, mask_L = sequence
    model: Decoder = nnx.merge(graph, params)
    watches = {
      place: _put_watch(model, place, mask_L[None], gram)
      for place, gram in total.items()
    }
    model.padded_logits(tokens_L1[None, :-1])
    return {place: w.gram_DxD[...] for place, w in watches.items()}, None

  return jax.lax.scan(add, zeros, sequences)[0]


def _put_watch(
  model: Decoder, place: str, mask_BxL: jax.Array, gram: jax.Array
) -> _Watch:
  """Watches the inputs of the module at a place, or the last norm's outputs."""
  *parents, name = place.split("/")
  parent = functools.reduce(getattr, parents, model)
  if is_stacked(place):
    mask_BxL = jnp.broadcast_to(mask_BxL, (len(gram), *mask_BxL.shape))
  watch, module = _Watch(mask_BxL, gram), getattr(parent, name)
  order = (module, watch) if place == _LAST else (watch, module)
  setattr(parent, name, nnx.Sequential(*order))
  return watch
