"""Held-out loss on fixed sequences: static shapes, float32 sums.

N sequences, B sequences a batch, M batches, L targets a sequence.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxmerge.data.heldout import HeldOut
from jaxmerge.evaluation.evaluator import (
  DEFAULT_EVALUATOR,
  EVALUATORS,
  JVP_PASSES,
  SECANT_SEQUENCES,
  VJP_PASSES,
  WEIGHT_JVP_PASSES,
  WEIGHT_VJP_PASSES,
  Derivatives,
)
from jaxmerge.evaluation.held_out_splits import Scorer, text_evaluator
from jaxmerge.evaluation.score import Score
from jaxmerge.evaluation.weight_derivatives import (
  WeightDerivatives,
  derivative_bytes,
  first_of_clusters,
  plain_execution,
)
from jaxmerge.evaluation.weight_secants import Secants, secants
from jaxmerge.merging.groups import Groups
from jaxmerge.merging.resident import Trees, TreesInStorage, Weights
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.model.execution import choose
from jaxmerge.model.loss import UNIT, token_losses
from jaxmerge.parallel.rules import batch_sharding, batch_shards, replicated

# The other unit of the loss, which does not depend on the tokenizer.
BITS = "bits/byte"


@jax.jit(static_argnums=(0, 1, 2))
def batch_losses(
  graph: nnx.GraphDef,
  mesh: Mesh,
  is_plain: bool,
  params: Any,
  tokens_BxL1: jax.Array,
  mask_BxL: jax.Array,
) -> jax.Array:
  """Summed nats of each sequence; `is_plain` where jvp goes through it."""
  batch, length = mask_BxL.shape
  if is_plain:
    execution = plain_execution(graph, params, mesh, batch, length)
  else:
    config = nnx.merge(graph, params).config
    execution = choose(
      config, mesh, length=length, batch=batch, falls_back=True
    )
  losses_BxL = token_losses(graph, params, tokens_BxL1, execution=execution)
  # Masked before the sum: a padded target may have an infinite loss.
  losses_B = jnp.sum(jnp.where(mask_BxL, losses_BxL, 0.0), axis=1)
  return jax.lax.with_sharding_constraint(losses_B, replicated(mesh))


class HeldOutLoss:
  """Scores parameters on one split; its batches stay on the devices.

  An item is a sequence: its value the summed nats of its targets, its weight
  their number, its cluster the document that it is from. A batch must be a
  multiple of what the mesh spreads over.
  """

  def __init__(
    self, graph: nnx.GraphDef, mesh: Mesh, split: HeldOut, batch_size: int
  ):
    self._split = split
    self._graph = graph
    self._mesh = mesh
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

    tokens = batches(split.tokens_NxL1.astype(np.int32))
    masks = batches(split.mask_NxL.astype(np.bool_))
    self._batches = list(zip(tokens, masks))
    self._batch_size = batch_size

  def score(self, params: Any, upto: int | None = None) -> Score:
    """Scores `upto` sequences, rounded up to whole batches; compiles once."""
    return self._more(params, np.zeros(0), upto or self.num_sequences)

  def extend(self, params: Any, known: Score, upto: int) -> Score:
    """As score, without the sequences of which an earlier call gave `known`."""
    return self._more(params, known.values_N, upto)

  def _more(self, params: Any, known_N: np.ndarray, upto: int) -> Score:
    size = self._batch_size
    # The last batch may be padded.
    is_all = len(known_N) == self.num_sequences
    first = len(self._batches) if is_all else len(known_N) // size
    known_N = known_N[: first * size]
    sums = [
      batch_losses(self._graph, self._mesh, False, params, *batch)
      for batch in self._batches[first : -(-upto // size)]
    ]
    return self._score(_joined([known_N, *sums]), new=len(known_N))

  def _score(
    self, losses_N: np.ndarray, passes: int = 1, new: int = 0
  ) -> Score:
    """The score of the first sequences, padded ones left out.

    Those before `new` have cost nothing, the others so many forward passes.
    """
    split = self._split
    count = min(len(losses_N), self.num_sequences)
    losses_N = losses_N[:count]
    targets_N = split.mask_NxL[:count].sum(axis=1).astype(np.int64)
    bytes_N = np.asarray(split.bytes_N[:count], np.int64)
    return Score(
      values_N=losses_N,
      weights_N=targets_N,
      clusters_N=np.asarray(split.document_N[:count], np.int64),
      unit=UNIT,
      direction="minimize",
      tokens=passes * int(targets_N[new:].sum()),
      extras={BITS: float(losses_N.sum() / math.log(2) / bytes_N.sum())},
    )

  def slope(self, params: Any, tangent: Any) -> tuple[Score, np.ndarray]:
    """The score and its derivative along a tangent, in forward mode."""
    found = [
      _batch_slopes(self._graph, self._mesh, params, tangent, *batch)
      for batch in self._batches
    ]
    losses_N, slopes_N = map(_joined, zip(*found))
    score = self._score(losses_N, JVP_PASSES)
    return score, slopes_N[: self.num_sequences]

  def gradient(self, params: Any) -> tuple[Score, Any]:
    """The score and its gradient, in reverse mode."""
    total = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=jnp.float32), params)
    found = []
    for batch in self._batches:
      losses_B, total = _add_gradient(
        self._graph, self._mesh, total, params, *batch
      )
      found.append(losses_B)
    return self._score(_joined(found), VJP_PASSES), total

  def weight_derivatives(
    self,
    weights_GxK: Weights,
    trees: Trees,
    groups: Groups,
    curvature_sequences: int = 0,
  ) -> Derivatives:
    """As WeightDifferentiable; the loss is that of the derivative's program."""
    split, count = self._split, curvature_sequences
    rows = first_of_clusters(split.document_N, count or SECANT_SEQUENCES)
    targets = int(split.mask_NxL[rows].sum())
    directions = len(weights_GxK) * (len(trees) - 1)
    if isinstance(trees, TreesInStorage):
      found = self._secants(weights_GxK, trees, groups, rows)
      score = self._score(found.losses_N, directions + 1)
      spent = (directions + 1) * targets
      curvature = found.curvature if count else None
      gradients_NxGxK = found.gradients_NxGxK
    else:
      params = trees.average(weights_GxK, groups)
      work = WeightDerivatives(
        self._graph,
        self._mesh,
        split,
        [trees[k] for k in range(len(trees))],
        groups,
      )
      losses_N, gradients_NxGxK = work.gradients(params)
      score = self._score(losses_N, WEIGHT_VJP_PASSES)
      curvature = work.curvature(params, rows) if count else None
      spent = WEIGHT_JVP_PASSES * directions * targets if count else 0
    score = dataclasses.replace(score, tokens=score.tokens + spent)
    return Derivatives(score, gradients_NxGxK, curvature)

  def _secants(
    self,
    weights_GxK: Weights,
    trees: TreesInStorage,
    groups: Groups,
    rows: list[int],
  ) -> Secants:
    """In float32, whatever the model computes in."""
    wide, weights = trees.in_float32(), np.asarray(weights_GxK, np.float64)

    def merge(weights_GxK: np.ndarray) -> Any:
      return wide.average(weights_GxK.tolist(), groups)

    config = nnx.merge(self._graph, merge(weights)).config
    exact, _ = abstract_decoder(dataclasses.replace(config, dtype="float32"))

    def losses(params: Any) -> np.ndarray:
      sums = [
        batch_losses(exact, self._mesh, False, params, *batch)
        for batch in self._batches
      ]
      return _joined(sums)[: self.num_sequences]

    with jax.default_matmul_precision("highest"):
      return secants(
        exact, self._mesh, self._split, merge, losses, weights, groups, rows
      )


def _joined(parts: Iterable[Any]) -> np.ndarray:
  return np.concatenate([np.asarray(part, np.float64) for part in parts])


@jax.jit(static_argnums=(0, 1))
def _batch_slopes(
  graph: nnx.GraphDef,
  mesh: Mesh,
  params: Any,
  tangent: Any,
  tokens_BxL1: jax.Array,
  mask_BxL: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  def losses(params: Any) -> jax.Array:
    return batch_losses(graph, mesh, True, params, tokens_BxL1, mask_BxL)

  return jax.jvp(losses, (params,), (tangent,))


@jax.jit(static_argnums=(0, 1), donate_argnums=2)
def _add_gradient(
  graph: nnx.GraphDef,
  mesh: Mesh,
  so_far: Any,
  params: Any,
  tokens_BxL1: jax.Array,
  mask_BxL: jax.Array,
) -> tuple[jax.Array, Any]:
  def total(params: Any) -> tuple[jax.Array, jax.Array]:
    losses_B = batch_losses(graph, mesh, False, params, tokens_BxL1, mask_BxL)
    return jnp.sum(losses_B), losses_B

  gradient, losses_B = jax.grad(total, has_aux=True)(params)
  return losses_B, jax.tree.map(jnp.add, so_far, gradient)


@dataclasses.dataclass(frozen=True)
class Knobs:
  """It has none of its own."""


def heldout_loss(
  scorer: Scorer, sequences: HeldOut, knobs: Knobs
) -> HeldOutLoss:
  """The loss of sequences, for open_scorer."""
  del knobs
  return HeldOutLoss(scorer.graph, scorer.mesh, sequences, scorer.batch_size)


EVALUATORS.register(
  text_evaluator(
    DEFAULT_EVALUATOR,
    "loss of a split's tokens, in nats/token",
    "minimize",
    Knobs,
    heldout_loss,
    is_differentiable=True,
    has_curvature=True,
    derivative_bytes=derivative_bytes,
  )
)
