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
from jaxmerge.parallel.rules import batch_sharding, batch_shards, replicated

_NONE = np.zeros(0)


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

  def first(self, count: int) -> "Score":
    """The score of the first sequences alone."""
    return Score(
      *(getattr(self, f.name)[:count] for f in dataclasses.fields(self))
    )

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
    self.num_sequences = len(split.tokens_NxL1)
    # No more padding than a batch of everything needs on this mesh.
    shards = batch_shards(mesh)
    batch_size = min(batch_size, -(-self.num_sequences // shards) * shards)
    padding = -self.num_sequences % batch_size
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
    return self.score(self.losses(params, self.num_sequences))

  def losses(
    self, params: Any, count: int, known_N: np.ndarray = _NONE
  ) -> np.ndarray:
    """Summed nats (float64) of `count` sequences, rounded up to whole batches.

    Args:
      params: of the model.
      count: sequences to score.
      known_N: what an earlier call gave of these parameters.
    """
    size = self._tokens[0].shape[0]
    some = slice(len(known_N) // size, -(-count // size))
    sums = [
      _batch_losses(self._graph, self._everywhere, params, tokens, mask)
      for tokens, mask in zip(self._tokens[some], self._masks[some])
    ]
    return np.concatenate([known_N, *(np.asarray(s, np.float64) for s in sums)])

  def score(self, losses_N: np.ndarray) -> Score:
    """A score of the first sequences, from what losses() gave of them."""
    split = self.split
    count = min(len(losses_N), len(split.tokens_NxL1))
    return Score(
      losses_N=losses_N[:count],
      targets_N=split.mask_NxL[:count].sum(axis=1).astype(np.int64),
      bytes_N=np.asarray(split.bytes_N[:count], np.int64),
      documents_N=np.asarray(split.document_N[:count], np.int64),
    )

  def slope(self, params: Any, tangent: Any) -> tuple[Score, np.ndarray]:
    """The score of parameters and its derivative along a change of them.

    Forward mode: about three forward passes.

    Returns:
      The score, and d losses_N / d t at params + t tangent (float64[N]).
    """
    found = [
      _batch_slopes(self._graph, self._everywhere, params, tangent, *batch)
      for batch in zip(self._tokens, self._masks)
    ]
    losses_N, slopes_N = (
      np.concatenate([np.asarray(part[i], np.float64) for part in found])
      for i in (0, 1)
    )
    score = self.score(losses_N)
    return score, slopes_N[: len(score.losses_N)]

  def gradient(self, params: Any) -> tuple[Score, Any]:
    """The score of parameters and d sum(losses_N) / d params, in float32.

    Reverse mode: about six forward passes on a CPU.
    """
    total = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=jnp.float32), params)
    found = []
    for batch in zip(self._tokens, self._masks):
      losses_B, total = _add_gradient(
        self._graph, self._everywhere, total, params, *batch
      )
      found.append(losses_B)
    losses_N = np.concatenate([np.asarray(part, np.float64) for part in found])
    return self.score(losses_N), total


@jax.jit(static_argnums=(0, 1))
def _batch_slopes(
  graph: nnx.GraphDef,
  everywhere: NamedSharding,
  params: Any,
  tangent: Any,
  tokens_BxL1: jax.Array,
  mask_BxL: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  def losses(params: Any) -> jax.Array:
    return _batch_losses(graph, everywhere, params, tokens_BxL1, mask_BxL)

  return jax.jvp(losses, (params,), (tangent,))


@jax.jit(static_argnums=(0, 1), donate_argnums=2)
def _add_gradient(
  graph: nnx.GraphDef,
  everywhere: NamedSharding,
  so_far: Any,
  params: Any,
  tokens_BxL1: jax.Array,
  mask_BxL: jax.Array,
) -> tuple[jax.Array, Any]:
  def total(params: Any) -> tuple[jax.Array, jax.Array]:
    losses_B = _batch_losses(graph, everywhere, params, tokens_BxL1, mask_BxL)
    return jnp.sum(losses_B), losses_B

  gradient, losses_B = jax.grad(total, has_aux=True)(params)
  return losses_B, jax.tree.map(jnp.add, so_far, gradient)
