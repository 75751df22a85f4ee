"""The loss that training minimises and evaluation reports: one definition.

B batch, L targets per sequence, D width, P padded vocabulary; K chunks of C
targets, spread over X devices of the mesh's context axis.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.model.decoder import Decoder, Params
from jaxmerge.model.execution import PLAIN, Execution
from jaxmerge.model.head import head_losses, plain_losses

UNIT = "nats/token"


class Losses(NamedTuple):
  """For each target -log p, and log Z, what its logits are normalised by."""

  losses_BxL: jax.Array
  normalisers_BxL: jax.Array


def token_losses(
  graph: nnx.GraphDef,
  params: Params,
  tokens_BxL1: jax.Array,
  segments_BxL1: jax.Array | None = None,
  execution: Execution = PLAIN,
) -> jax.Array:
  """Cross-entropy of each next token in nats.

  Args:
    graph, params: the decoder's structure and its parameters.
    tokens_BxL1: int32[B, L + 1]; token i is predicted from those before it.
    segments_BxL1: int32, the document of each token; None: all are one.
    execution: how it is computed.

  Returns:
    float32[B, L]: -log p(tokens[:, i + 1] | tokens[:, : i + 1]).
  """
  batch = (graph, params, tokens_BxL1, segments_BxL1, execution)
  return losses_and_normalisers(*batch).losses_BxL


def losses_and_normalisers(
  graph: nnx.GraphDef,
  params: Params,
  tokens_BxL1: jax.Array,
  segments_BxL1: jax.Array | None = None,
  execution: Execution = PLAIN,
) -> Losses:
  """As token_losses, with log Z of each target (z-loss: arXiv 2204.02311)."""
  model: Decoder = nnx.merge(graph, params)
  segments_BxL = None if segments_BxL1 is None else segments_BxL1[:, :-1]
  x_BxLxD = model.hidden(tokens_BxL1[:, :-1], segments_BxL, execution)
  return losses_of_hidden(model, x_BxLxD, tokens_BxL1[:, 1:], execution)


def losses_of_hidden(
  model: Decoder,
  x_BxLxD: jax.Array,
  targets_BxL: jax.Array,
  execution: Execution,
) -> Losses:
  """As losses_and_normalisers, from Decoder.hidden.

  In chunks along the positions, whose logits are computed twice. Never along
  B x L as one axis: a chunk would lie on few devices.
  """
  one: Callable[..., tuple[jax.Array, jax.Array]] = plain_losses
  if execution.own_backward:
    one = partial(head_losses, dtype=execution.logits)
  kernel_DxP = model.head_kernel()

  def losses(x: jax.Array, targets: jax.Array) -> Losses:
    whole_DxP = execution.gather(kernel_DxP, "head/kernel", x.dtype)
    shape = targets.shape
    if execution.rows:  # flattened: see on_cpu.project
      x, targets = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    found = one(model.config, x, whole_DxP, targets)
    return Losses(*(each.reshape(shape) for each in found))

  length, chunk = targets_BxL.shape[1], execution.loss_chunk
  if not 0 < chunk < length:
    return losses(x_BxLxD, targets_BxL)
  parts = execution.mesh.shape["context"] if execution.mesh else 1
  shape = (len(targets_BxL), parts, length // chunk, chunk // parts)

  def chunks(x: jax.Array) -> jax.Array:
    """B x L -> K x B x X x C/X, each chunk on all devices."""
    return jnp.moveaxis(x.reshape(*shape, *x.shape[2:]), 2, 0)

  found = jax.lax.map(
    lambda chunk: jax.checkpoint(losses, prevent_cse=False)(*chunk),
    (chunks(x_BxLxD), chunks(targets_BxL)),
  )
  return Losses(
    *(jnp.moveaxis(x, 0, 2).reshape(targets_BxL.shape) for x in found)
  )
