"""A merge as a function of its weights, a part of the decoder at a time.

The merge is theta(w) = theta_K + sum_{k<K} w_k (theta_k - theta_K), one row of
weights for each group of parameters. The differences theta_k - theta_K are
formed for one layer at a time, within the scan over the layers: however many
checkpoints there are, no tree of differences exists.

B sequences, L positions, D width, P padded vocabulary; K checkpoints, J = K - 1
differences.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import Params
from jaxmerge.model.execution import Execution
from jaxmerge.model.spread import look_up

HIGHEST = jax.lax.Precision.HIGHEST
# Bytes on a device of what exists for several directions at once.
AT_ONCE = 2**28


class Merge(NamedTuple):
  """A merge, the trees that it is of, and which weights act on which leaf.

  Attributes:
    params: the merged tree.
    trees: the K trees.
    group_of_leaf: like a tree: a group's index, or one a layer (int32[L]).
  """

  params: Params
  trees: tuple[Params, ...]
  group_of_leaf: Any


class Part(NamedTuple):
  """The parameters that one step of the computation uses."""

  params: Any
  trees: tuple[Any, ...]
  group_of_leaf: Any


def layers_of(merge: Merge) -> Part:
  """Stacked, to be scanned: the groups of all leaves are a layer each."""
  layers = merge.params["layers"]
  depth = len(jax.tree.leaves(layers)[0])
  groups = jax.tree.map(
    lambda group: jnp.broadcast_to(jnp.asarray(group), depth),
    merge.group_of_leaf["layers"],
  )
  return Part(_wide(layers), tuple(t["layers"] for t in merge.trees), groups)


def head_params(tree: Params) -> Params:
  """The final norm, and the head or the embedding that is tied to it."""
  return {
    name: tree[name]
    for name in ("final_norm", "head" if "head" in tree else "embed")
  }


def head_of(merge: Merge) -> Part:
  """The part that turns the last layer's output into logits."""
  return Part(
    _wide(head_params(merge.params)),
    tuple(map(head_params, merge.trees)),
    head_params(merge.group_of_leaf),
  )


def _wide(tree: Any) -> Any:
  """In float32, so that gradients are: what is computed has its own dtype."""
  return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def changes_of(trees: Sequence[jax.Array]) -> jax.Array:
  """theta_k - theta_K of a leaf: float32[J, ...]."""
  *others, last = (leaf.astype(jnp.float32) for leaf in trees)
  return jnp.stack([leaf - last for leaf in others])


def embedded(
  tree: Params, tokens_BxL: jax.Array, execution: Execution, dtype: Any
) -> jax.Array:
  """Rows of a tree's embedding, not to be differentiated: B x L x D."""
  table_PxD, mesh = tree["embed"]["embedding"], execution.mesh
  if mesh is not None and mesh.size > 1:
    return look_up(table_PxD, tokens_BxL, mesh, dtype)
  return jnp.take(table_PxD, tokens_BxL, axis=0).astype(dtype)


def embedded_changes(
  merge: Merge, tokens_BxL: jax.Array, execution: Execution, dtype: Any
) -> jax.Array:
  """Rows of theta_k - theta_K of the embedding: J x B x L x D."""
  return changes_of(
    [embedded(tree, tokens_BxL, execution, jnp.float32) for tree in merge.trees]
  ).astype(dtype)


def run_layer(
  graph: nnx.GraphDef,
  params: Params,
  layer: Any,
  x_BxLxD: jax.Array,
  execution: Execution,
) -> jax.Array:
  """A layer of the decoder with parameters of its own."""
  layer_graph = nnx.graphdef(nnx.merge(graph, params).layers)
  found: jax.Array = nnx.merge(layer_graph, layer)(x_BxLxD, None, execution)
  return found


def forward(
  graph: nnx.GraphDef,
  params: Params,
  tokens_BxL: jax.Array,
  execution: Execution,
) -> tuple[jax.Array, jax.Array]:
  """The last layer's output, B x L x D, and the inputs of all (stacked)."""
  dtype = jnp.dtype(nnx.merge(graph, params).config.dtype)
  x_BxLxD = embedded(params, tokens_BxL, execution, dtype)

  def step(x_BxLxD: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array]:
    y_BxLxD = run_layer(graph, params, layer, x_BxLxD, execution)
    return execution.constrain(y_BxLxD), x_BxLxD

  found: tuple[jax.Array, jax.Array] = jax.lax.scan(
    step, x_BxLxD, params["layers"]
  )
  return found


def times_at_once(config: DecoderConfig, batch: int, length: int) -> int:
  """So many times what a layer stores of a batch takes few bytes."""
  scores = config.num_attention_heads * length
  widest = 3 * config.intermediate_size + 4 * config.hidden_size
  row = 4 * batch * length * (2 * scores + widest)
  return max(1, AT_ONCE // row)
