"""The Gauss-Newton matrix of the loss by the weights of a merge.

sum over tokens of sum_v p_v (J_v - Jbar)(J_v - Jbar)^T with J = d logits / d
weights and Jbar = sum_v p_v J_v (Martens, arXiv 1412.1193, section 9). It is
the Hessian where logits are linear in the weights.

B sequences, L positions, D width; G groups, K checkpoints,
J = K - 1 differences, R = G J directions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmerge.model.execution import Execution
from jaxmerge.model.head_curvature import curvature_of_hidden
from jaxmerge.model.tangents import (
  Merge,
  Part,
  changes_of,
  embedded,
  embedded_changes,
  layers_of,
  run_layer,
  times_at_once,
)
from jaxmerge.parallel.rules import batch_shards

_Push = Callable[[list[jax.Array]], jax.Array]


def weight_curvature(
  graph: nnx.GraphDef,
  merge: Merge,
  tokens_BxL1: jax.Array,
  mask_BxL: jax.Array,
  execution: Execution,
  *,
  num_groups: int,
  classes: tuple[int, ...],
) -> jax.Array:
  """That of the summed loss, in forward mode.

  Args:
    graph: the decoder's structure.
    merge: where, and along what.
    classes: of a layer's leaves, which always are of one group; see
      classes_of.
    tokens_BxL1: int32[B, L + 1].
    mask_BxL: bool[B, L], the targets that count.
    execution: one that has a forward mode.

  Returns:
    float32[R, R], by group and difference.
  """
  config = nnx.merge(graph, merge.params).config
  tokens_BxL = tokens_BxL1[:, :-1]
  local = len(tokens_BxL)
  if execution.mesh is not None:
    local //= batch_shards(execution.mesh)
  dtype = jnp.dtype(config.dtype)
  x_BxLxD = embedded(merge.params, tokens_BxL, execution, dtype)
  tangents = _embedded_tangents(merge, tokens_BxL, execution, dtype, num_groups)
  at_once = times_at_once(config, local, tokens_BxL.shape[1])

  layers = layers_of(merge)
  trees = list(zip(*map(jax.tree.leaves, layers.trees)))

  def forward(
    carry: tuple[jax.Array, jax.Array], scanned: tuple[jax.Array, Part]
  ) -> tuple[tuple[jax.Array, jax.Array], None]:
    (x_BxLxD, tangents), (index, part) = carry, scanned

    def run(layer: Any, x_BxLxD: jax.Array) -> jax.Array:
      y_BxLxD = run_layer(graph, merge.params, layer, x_BxLxD, execution)
      return execution.constrain(y_BxLxD)

    def moved(push: _Push, where: list[int]) -> jax.Array:
      return _moved(push, [trees[i] for i in where], index, at_once)

    return _layer_tangents(
      run, part, classes, x_BxLxD, tangents, at_once, moved
    ), None

  # Not scanned over: a layer of each tree would be copied.
  scanned = (jnp.arange(config.num_hidden_layers), layers._replace(trees=()))
  (x_BxLxD, tangents), _ = jax.lax.scan(forward, (x_BxLxD, tangents), scanned)
  return curvature_of_hidden(
    graph, merge, x_BxLxD, tangents, mask_BxL, execution
  )


def classes_of(group_of_leaf: Any) -> tuple[int, ...]:
  """Numbers the leaves of a layer: equal where their groups always are."""
  depth = max(np.size(x) for x in jax.tree.leaves(group_of_leaf["layers"]))
  rows = [
    tuple(np.broadcast_to(np.asarray(leaf), depth).tolist())
    for leaf in jax.tree.leaves(group_of_leaf["layers"])
  ]
  number = {row: index for index, row in enumerate(dict.fromkeys(rows))}
  return tuple(number[row] for row in rows)


def _embedded_tangents(
  merge: Merge,
  tokens_BxL: jax.Array,
  execution: Execution,
  dtype: Any,
  num_groups: int,
) -> jax.Array:
  """Tangents of what the embedding gives: G x J x B x L x D."""
  changes = embedded_changes(merge, tokens_BxL, execution, dtype)
  zeros = jnp.zeros((num_groups, *changes.shape), dtype)
  return zeros.at[merge.group_of_leaf["embed"]["embedding"]].add(changes)


def _layer_tangents(
  run: Callable[[Any, jax.Array], jax.Array],
  part: Part,
  classes: tuple[int, ...],
  x_BxLxD: jax.Array,
  tangents: jax.Array,
  at_once: int,
  moved_by: Callable[[_Push, list[int]], jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """A layer's output and its tangents (G x J x B x L x D) from the input's.

  What moves with the input moves in all directions; what moves with the layer's
  own parameters only in those of the groups that it belongs to: `moved_by` has
  what a function of some leaves gives along each of their differences.
  """
  leaves, tree = jax.tree.flatten(part.params)
  groups = jax.tree.leaves(part.group_of_leaf)
  y_BxLxD, push = jax.linearize(lambda x: run(part.params, x), x_BxLxD)
  flat = tangents.reshape(-1, *x_BxLxD.shape)
  moved = jax.lax.map(push, flat, batch_size=min(at_once, len(flat)))
  tangents = moved.reshape(tangents.shape)
  for number in range(max(classes) + 1):
    where = [i for i, of_leaf in enumerate(classes) if of_leaf == number]

    def of_some(some: list[jax.Array], where: list[int] = where) -> jax.Array:
      whole = list(leaves)
      for i, leaf in zip(where, some):
        whole[i] = leaf
      return run(jax.tree.unflatten(tree, whole), x_BxLxD)

    _, push = jax.linearize(of_some, [leaves[i] for i in where])
    tangents = tangents.at[groups[where[0]]].add(moved_by(push, where))
  return y_BxLxD, tangents


def _moved(
  push: _Push,
  stacks: Sequence[Sequence[jax.Array]],
  layer: jax.Array,
  at_once: int,
) -> jax.Array:
  """Tangents along the differences of some leaves of K trees: J x ..."""

  def of_layer(stacks: Sequence[jax.Array]) -> list[jax.Array]:
    return [
      jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in stacks
    ]

  if at_once > 1:
    changes = [changes_of(of_layer(of_leaf)) for of_leaf in stacks]
    count = len(changes[0])
    return jax.lax.map(push, changes, batch_size=min(at_once, count))
  *others, last = zip(*stacks)  # of each tree
  leaves_of_last = of_layer(last)

  def alone(stacks: Sequence[jax.Array]) -> list[jax.Array]:
    # The barrier: else the compiler takes the same slice behind all branches,
    # each of which then copies a whole tree's layers.
    found: list[jax.Array] = jax.lax.optimization_barrier(of_layer(stacks))
    return found

  def one(k: jax.Array) -> jax.Array:
    # Only one tree's difference exists.
    leaves = jax.lax.switch(
      k, [lambda stacks=stacks: alone(stacks) for stacks in others]
    )
    return push([changes_of(pair)[0] for pair in zip(leaves, leaves_of_last)])

  return jax.lax.map(one, jnp.arange(len(others)))
