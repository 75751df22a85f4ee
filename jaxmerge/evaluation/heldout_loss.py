"""Held-out loss on fixed sequences: static shapes, float32 sums.

N sequences, B sequences a batch, M batches, L targets a sequence.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jaxmerge.data.heldout import HeldOut
from jaxmerge.model.loss import token_losses
from jaxmerge.parallel.rules import batch_sharding, replicated


@dataclasses.dataclass(frozen=True)
class Score:
  """The loss of one model on the sequences of a split.

  Attributes:
    losses_N: float64[N], summed nats of each sequence.
    targets_N: int64[N], how many tokens each sequence predicts.
    bytes_N: int64[N], how many bytes of text these tokens stand for.
    documents_N: int64[N], which document each sequence is from.
  """

  losses_N: np.ndarray
  targets_N: np.ndarray
  bytes_N: np.ndarray
  documents_N: np.ndarray

  @property
  def nats_per_token(self) -> float:
    return float(self.losses_N.sum() / self.targets_N.sum())

  @property
  def bits_per_byte(self) -> float:
    return float(self.losses_N.sum() / math.log(2) / self.bytes_N.sum())


@jax.jit(static_argnums=(0, 1))
def _batch_losses(
  graph: nnx.GraphDef,
  everywhere: NamedSharding,
  params: Any,
  tokens_BxL1: jax.Array,
  mask_BxL: jax.Array,
) -> jax.Array:
  losses_BxL = token_losses(graph, params, tokens_BxL1)
  # Masked before the sum: a padded target may have an infinite loss.
  losses_B = jnp.sum(jnp.where(mask_BxL, losses_BxL, 0.0), axis=1)
  return jax.lax.with_sharding_constraint(losses_B, everywhere)


class HeldOutLoss:
  """Scores parameters on one split; its batches stay on the devices.

  Args:
    graph: structure of the decoder.
    mesh: where to compute.
    split: the sequences.
    batch_size: sequences a step; a multiple of what the mesh spreads over.
  """

  def __init__(
    self, graph: nnx.GraphDef, mesh: Mesh, split: HeldOut, batch_size: int
  ):
    self.split = split
    self._graph = graph
    self._everywhere = replicated(mesh)
    sequences = len(split.tokens_NxL1)
    padding = -sequences % batch_size
    sharding = batch_sharding(mesh)

    def batches(values: np.ndarray) -> list[jax.Array]:
      widths = [(0, padding)] + [(0, 0)] * (values.ndim - 1)
      padded = np.pad(values, widths)
      return [
        jax.make_array_from_callback(part.shape, sharding, part.__getitem__)
        for part in np.split(padded, len(padded) // batch_size)
      ]

    self._tokens = batches(split.tokens_NxL1.astype(np.int32))
    self._masks = batches(split.mask_NxL.astype(np.bool_))

  def __call__(self, params: Any) -> Score:
    """Scores one tree of parameters; one compile for all of them."""
    sums = [
      _batch_losses(self._graph, self._everywhere, params, tokens, mask)
      for tokens, mask in zip(self._tokens, self._masks)
    ]
    losses = np.concatenate([np.asarray(s, np.float64) for s in sums])
    split = self.split
    return Score(
      losses_N=losses[: len(split.tokens_NxL1)],
      targets_N=split.mask_NxL.sum(axis=1).astype(np.int64),
      bytes_N=np.asarray(split.bytes_N, np.int64),
      documents_N=np.asarray(split.document_N, np.int64),
    )
