"""Gradients of sequences' losses by the weights of a merge, in reverse mode.

B sequences, L positions, D width; G groups, K checkpoints, J = K - 1
differences.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.model.decoder import Params
from jaxmerge.model.execution import Execution
from jaxmerge.model.loss import losses_of_hidden
from jaxmerge.model.tangents import (
  AT_ONCE,
  HIGHEST,
  Merge,
  Part,
  changes_of,
  embedded_changes,
  forward,
  head_of,
  layers_of,
  run_layer,
  times_at_once,
)


def weight_gradients(
  graph: nnx.GraphDef,
  merge: Merge,
  tokens_BxL1: jax.Array,
  mask_BxL: jax.Array,
  execution: Execution,
  *,
  num_groups: int,
  shards: int,
) -> tuple[jax.Array, jax.Array]:
  """Each sequence's loss and its gradient by the weights, in one reverse pass.

  <d loss_b / d theta, theta_k - theta_K> over the parameters of each group. The
  gradients of one layer by its parameters exist at a time, for each sequence.

  Args:
    graph: the decoder's structure.
    merge: where to differentiate, and along what.
    tokens_BxL1: int32[B, L + 1].
    mask_BxL: bool[B, L], the targets that count.
    execution: how a sequence is computed.
    shards: sequences whose head is computed at once, a divisor of B.

  Returns:
    float32[B], summed nats, and float32[B, G, J].
  """
  tokens_BxL, targets_BxL = tokens_BxL1[:, :-1], tokens_BxL1[:, 1:]
  x_BxLxD, inputs = forward(graph, merge.params, tokens_BxL, execution)
  losses_B, of_x_BxLxD, total_BxGxJ = _head_gradients(
    graph,
    merge,
    x_BxLxD,
    targets_BxL,
    mask_BxL,
    execution,
    num_groups=num_groups,
    shards=shards,
  )
  of_x_BxLxD, total_BxGxJ = _through_layers(
    graph, merge, inputs, of_x_BxLxD, total_BxGxJ, execution
  )
  changes = embedded_changes(merge, tokens_BxL, execution, jnp.float32)
  found_BxJ = jnp.einsum(
    "bld,jbld->bj",
    of_x_BxLxD.astype(jnp.float32),
    changes,
    precision=HIGHEST,
  )
  group = merge.group_of_leaf["embed"]["embedding"]
  return losses_B, total_BxGxJ.at[:, group].add(found_BxJ)


def _through_layers(
  graph: nnx.GraphDef,
  merge: Merge,
  inputs: jax.Array,
  of_x_BxLxD: jax.Array,
  total_BxGxJ: jax.Array,
  execution: Execution,
) -> tuple[jax.Array, jax.Array]:
  """Pulls gradients by the last layer's output back to the first one's input.

  Adds those by the weights through the layers; `inputs` are theirs, stacked.
  """
  alone = dataclasses.replace(execution, mesh=None)  # spread from without

  def backward(
    carry: tuple[jax.Array, jax.Array], layer: tuple[jax.Array, Part]
  ) -> tuple[tuple[jax.Array, jax.Array], None]:
    of_y_BxLxD, total_BxGxJ = carry
    x_BxLxD, part = layer

    def one(x_LxD: jax.Array, of_y_LxD: jax.Array) -> tuple[Any, jax.Array]:
      call = lambda layer, x: run_layer(
        graph, merge.params, layer, x[None], alone
      )[0]
      found: tuple[Any, jax.Array] = jax.vjp(call, part.params, x_LxD)[1](
        of_y_LxD
      )
      return found

    gradients_B, of_x_BxLxD = jax.vmap(one)(x_BxLxD, of_y_BxLxD)
    total_BxGxJ = _add_products(total_BxGxJ, gradients_B, part)
    return (execution.constrain(of_x_BxLxD), total_BxGxJ), None

  found, _ = jax.lax.scan(
    backward,
    (of_x_BxLxD, total_BxGxJ),
    (inputs, layers_of(merge)),
    reverse=True,
  )
  pulled: tuple[jax.Array, jax.Array] = found
  return pulled


def _head_gradients(
  graph: nnx.GraphDef,
  merge: Merge,
  x_BxLxD: jax.Array,
  targets_BxL: jax.Array,
  mask_BxL: jax.Array,
  execution: Execution,
  *,
  num_groups: int,
  shards: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Losses, their gradients by x, and by the weights through the head.

  Few sequences at a time, as each has a gradient of the head's size.
  """
  alone = dataclasses.replace(execution, mesh=None)
  head = head_of(merge)
  zeros_GxJ = jnp.zeros((num_groups, len(merge.trees) - 1))

  def loss(
    params: Any, x_LxD: jax.Array, targets_L: jax.Array, mask_L: jax.Array
  ) -> jax.Array:
    model = nnx.merge(graph, {**merge.params, **params})
    x_1xLxD = model.final_norm(x_LxD[None])
    found = losses_of_hidden(model, x_1xLxD, targets_L[None], alone)
    return jnp.sum(jnp.where(mask_L, found.losses_BxL[0], 0.0))

  def one(
    x_LxD: jax.Array, targets_L: jax.Array, mask_L: jax.Array
  ) -> tuple[jax.Array, Any, jax.Array]:
    found, pull = jax.vjp(
      lambda params, x: loss(params, x, targets_L, mask_L), head.params, x_LxD
    )
    gradient, of_x_LxD = pull(jnp.ones_like(found))
    total_GxJ = zeros_GxJ
    leaves = zip(*map(jax.tree.leaves, (gradient, head.group_of_leaf)))
    trees = zip(*map(jax.tree.leaves, head.trees))
    for (slope, group), (*others, last) in zip(leaves, trees):
      # Summed as they are formed: stacked differences would be J heads.
      total_GxJ = total_GxJ.at[group].add(
        jnp.stack([jnp.sum(slope * changes_of((k, last))[0]) for k in others])
      )
    return found, of_x_LxD, total_GxJ

  def some(arrays: Any) -> Any:
    return jax.vmap(one)(*arrays)

  def parts(array: jax.Array) -> jax.Array:
    return jnp.moveaxis(array.reshape(shards, -1, *array.shape[1:]), 1, 0)

  arrays = jax.tree.map(parts, (x_BxLxD, targets_BxL, mask_BxL))
  found: tuple[jax.Array, jax.Array, jax.Array] = jax.tree.map(
    lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]),
    jax.lax.map(some, arrays),
  )
  return found


def _add_products(
  total_BxGxJ: jax.Array, gradients_B: Any, part: Part
) -> jax.Array:
  """Adds <gradient_b, theta_k - theta_K> of each leaf to its group's sum."""
  trees = zip(*map(jax.tree.leaves, part.trees))
  leaves = map(jax.tree.leaves, (gradients_B, part.group_of_leaf))
  for (slopes_B, group), of_leaf in zip(zip(*leaves), trees):
    axes = tuple(range(1, slopes_B.ndim))
    found_BxJ = jax.lax.dot_general(
      slopes_B, changes_of(of_leaf), ((axes, axes), ((), ())), precision=HIGHEST
    )
    total_BxGxJ = total_BxGxJ.at[:, group].add(found_BxJ)
  return total_BxGxJ


def sequences_at_once(graph: nnx.GraphDef, params: Params, length: int) -> int:
  """Sequences on a device for weight_gradients.

  So many that their gradients of a layer take half a tree at most, and what
  else it stores few bytes; in small models any number.
  """
  size = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
  stack = 4 * sum(leaf.size for leaf in jax.tree.leaves(params["layers"]))
  config = nnx.merge(graph, params).config
  layer = stack // config.num_hidden_layers
  of_gradients = max(size // 2, AT_ONCE // 4) // layer
  return max(1, min(of_gradients, times_at_once(config, 1, length)))
