"""The derivatives of weight_derivatives from scores at displaced weights.

For trees that do not lie on the devices: a merge is read for each weight.

N sequences, B sequences at once, L targets a sequence, D width; G groups, K
checkpoints, J = K - 1 differences to the last one, R = G J directions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmerge.data.heldout import HeldOut
from jaxmerge.evaluation.weight_derivatives import (
  batches,
  plain_execution,
  whole_matrix,
)
from jaxmerge.merging.groups import Groups
from jaxmerge.model.head_curvature import secant_curvature
from jaxmerge.model.tangents import forward, head_params
from jaxmerge.parallel.exchange import whole
from jaxmerge.parallel.rules import BATCH_AXES, batch_shards, replicated

# Of a weight: what the secant of a loss is off by grows with it. In float32 the
# rounding errors of logits stay far below what it changes; in bfloat16 they
# would exceed it.
STEP = 0.01


class Secants(NamedTuple):
  """At weights, and at weights with one moved, of all directions.

  Attributes:
    losses_N, gradients_NxGxK, curvature: float64; see evaluator.Derivatives.
  """

  losses_N: np.ndarray
  gradients_NxGxK: np.ndarray
  curvature: np.ndarray


def secants(
  graph: nnx.GraphDef,
  mesh: Mesh,
  split: HeldOut,
  merge: Callable[[np.ndarray], Any],
  losses: Callable[[Any], np.ndarray],
  weights_GxK: np.ndarray,
  groups: Groups,
  rows: Sequence[int],
) -> Secants:
  """Differences of plain forward passes, by each weight against the last one.

  The slope of a loss from w to w + step e is that at w and step / 2 times its
  curvature along e: the latter is taken off, as the curvature says it.

  Args:
    graph: the decoder's structure.
    mesh: where to compute.
    split: the sequences.
    merge: gives the merged tree at weights, G x K.
    losses: gives the summed losses of all sequences.
    weights_GxK: where to differentiate.
    groups: of parameters with weights of their own.
    rows: sequences for the curvature.
  """
  num_groups, count = weights_GxK.shape
  params = merge(weights_GxK)
  losses_N, hidden = losses(params), _hidden(graph, mesh, split, params, rows)
  own = {int(g) for g in jax.tree.leaves(head_params(groups.of_leaf))}
  slopes, moved, heads = [], [], dict[int, Any]()
  for r, (g, k) in enumerate(np.ndindex(num_groups, count - 1)):
    at_GxK = weights_GxK.copy()
    at_GxK[g, [k, -1]] += STEP, -STEP
    displaced = merge(at_GxK)
    slopes.append((losses(displaced) - losses_N) / STEP)
    moved.append(_hidden(graph, mesh, split, displaced, rows))
    if g in own:
      heads[r] = head_params(displaced)
    del displaced
  targets_N = split.mask_NxL.sum(axis=1)
  total_RxR = _total_curvature(
    graph, mesh, split, rows, params, heads, hidden, moved
  )
  mean_RxR = total_RxR / int(targets_N[list(rows)].sum())
  # d^2 loss / d w^2 of an item, as if each token's were the mean.
  bends_NxR = targets_N[:, None] * np.diag(mean_RxR)
  slopes_NxR = np.stack(slopes, axis=1) - STEP / 2 * bends_NxR
  gradients = slopes_NxR.reshape(-1, num_groups, count - 1)
  return Secants(
    losses_N,
    np.pad(gradients, [(0, 0), (0, 0), (0, 1)]),
    whole_matrix(mean_RxR, num_groups),
  )


def _total_curvature(
  graph: nnx.GraphDef,
  mesh: Mesh,
  split: HeldOut,
  rows: Sequence[int],
  params: Any,
  heads: dict[int, Any],
  hidden: Sequence[np.ndarray],
  moved: Sequence[Sequence[np.ndarray]],
) -> np.ndarray:
  """Sums the curvature of batches, from their hidden states, float64[R, R]."""
  total_RxR = np.zeros((len(moved), len(moved)))
  for i, (_, mask_BxL) in enumerate(batches(split, mesh, rows)):
    found = _curvature(
      graph,
      mesh,
      params,
      heads,
      _placed(hidden[i], mesh),
      _placed(np.stack([each[i] for each in moved]), mesh),
      mask_BxL,
    )
    total_RxR = total_RxR + np.asarray(found, np.float64)
  return total_RxR


def _placed(array: np.ndarray, mesh: Mesh) -> jax.Array:
  """Spread by sequence: (..., B, L, D)."""
  spec = PartitionSpec(*[None] * (array.ndim - 3), BATCH_AXES)
  return jax.make_array_from_callback(
    array.shape, NamedSharding(mesh, spec), array.__getitem__
  )


def _hidden(
  graph: nnx.GraphDef, mesh: Mesh, split: HeldOut, params: Any, rows: Any
) -> list[np.ndarray]:
  """The last layer's output of each batch, in host memory."""
  return [
    whole(_last_hidden(graph, mesh, params, tokens_BxL1))
    for tokens_BxL1, _ in batches(split, mesh, rows)
  ]


@partial(jax.jit, static_argnums=(0, 1))
def _last_hidden(
  graph: nnx.GraphDef, mesh: Mesh, params: Any, tokens_BxL1: jax.Array
) -> jax.Array:
  tokens_BxL = tokens_BxL1[:, :-1]
  execution = plain_execution(graph, params, mesh, *tokens_BxL.shape)
  return forward(graph, params, tokens_BxL, execution)[0]


@partial(jax.jit, static_argnums=(0, 1))
def _curvature(
  graph: nnx.GraphDef,
  mesh: Mesh,
  params: Any,
  heads: dict[int, Any],
  x_BxLxD: jax.Array,
  moved: jax.Array,
  mask_BxL: jax.Array,
) -> jax.Array:
  found = secant_curvature(
    graph,
    params,
    heads,
    x_BxLxD,
    moved,
    mask_BxL,
    STEP,
    local=len(mask_BxL) // batch_shards(mesh),
  )
  return jax.lax.with_sharding_constraint(found, replicated(mesh))
