"""The Gauss-Newton matrix from what the last layer gives.

The matrix is a sum over the vocabulary: a part of its columns exists at a time,
of the logits' slopes and of the differences of heads.

B sequences, L positions, D width, P padded vocabulary; G groups, K checkpoints,
J = K - 1 differences, R = G J directions; C positions and S columns of the
vocabulary that exist at once.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.model.decoder import Params
from jaxmerge.model.execution import Execution
from jaxmerge.model.head import logits_of
from jaxmerge.model.moments import (
  curvature_of_slopes,
  moments_of,
  together,
)
from jaxmerge.model.tangents import (
  Merge,
  changes_of,
  head_of,
  head_params,
)
from jaxmerge.parallel.rules import batch_shards

# Positions that are computed at once, and the bytes of their slopes in all
# directions: there are a few such arrays.
_MOST_POSITIONS, _SLOPES = 128, 2**26


def curvature_of_hidden(
  graph: nnx.GraphDef,
  merge: Merge,
  x_BxLxD: jax.Array,
  tangents: jax.Array,
  mask_BxL: jax.Array,
  execution: Execution,
) -> jax.Array:
  """The matrix from the last layer's output and its tangents.

  Args:
    graph: the decoder's structure.
    merge: where, and along what.
    tangents: of x_BxLxD, G x J x B x L x D.
    mask_BxL: bool, the targets that count.
    execution: says the mesh.

  Returns:
    float32[R, R].
  """
  config = nnx.merge(graph, merge.params).config
  mesh, (batch, length, _) = execution.mesh, x_BxLxD.shape
  local, tensor = batch, 1
  if mesh is not None:
    local, tensor = batch // batch_shards(mesh), mesh.shape["tensor"]
  positions = _divisor(length, _MOST_POSITIONS)
  directions = tangents.shape[0] * tangents.shape[1]
  most = _SLOPES // (4 * local * positions * directions)
  width = config.padded_vocab_size // tensor
  head = _Head(graph, merge, tensor, width // _divisor(width, most))

  def chunk(arrays: tuple[jax.Array, ...]) -> jax.Array:
    x_BxCxD, tangents, mask_BxC = arrays
    x_BxCxD, tangents = head.normed(x_BxCxD, tangents)
    return head.curvature(x_BxCxD, tangents, mask_BxC)

  parts = functools.partial(_parts, count=positions)
  found = jax.lax.map(
    chunk, (parts(x_BxLxD, 1), parts(tangents, 3), parts(mask_BxL, 1))
  )
  return jnp.sum(found, axis=0)


class _Head:
  """The final norm and the head of a merge, in equal parts of the vocabulary.

  Args:
    graph, merge: see curvature_of_hidden.
    tensor: devices that the vocabulary is spread over: a part is of all.
    count: parts.
  """

  def __init__(
    self, graph: nnx.GraphDef, merge: Merge, tensor: int, count: int
  ):
    self._graph, self._params = graph, merge.params
    self._tensor, self._count = tensor, count
    self._part = head_of(merge)
    [self._name] = self._part.params.keys() - {"final_norm"}
    self._config = nnx.merge(graph, merge.params).config

  def normed(
    self, x_BxCxD: jax.Array, tangents: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """The norm's output and its tangents, G x J x B x C x D."""
    leaves, tree = jax.tree.flatten(self._part.params["final_norm"])
    groups = jax.tree.leaves(self._part.group_of_leaf["final_norm"])
    trees = zip(*(jax.tree.leaves(t["final_norm"]) for t in self._part.trees))

    def norm(leaves: list[jax.Array], x_BxCxD: jax.Array) -> jax.Array:
      own = {"final_norm": jax.tree.unflatten(tree, leaves)}
      model = nnx.merge(self._graph, {**self._params, **own})
      found: jax.Array = model.final_norm(x_BxCxD)
      return found

    y_BxCxD, push = jax.linearize(lambda x: norm(leaves, x), x_BxCxD)
    moved = jax.vmap(jax.vmap(push))(tangents)
    for i, (group, of_leaf) in enumerate(zip(groups, trees)):

      def of_one(leaf: jax.Array, i: int = i) -> jax.Array:
        return norm([*leaves[:i], leaf, *leaves[i + 1 :]], x_BxCxD)

      _, push = jax.linearize(of_one, leaves[i])
      moved = moved.at[group].add(jax.vmap(push)(changes_of(of_leaf)))
    return y_BxCxD, moved

  def _columns(self, leaf: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """A part of a leaf along its axis of the vocabulary."""
    before, after = leaf.shape[:axis], leaf.shape[axis + 1 :]
    split = leaf.reshape(*before, self._tensor, self._count, -1, *after)
    part = jax.lax.dynamic_index_in_dim(split, index, axis + 1, keepdims=False)
    return part.reshape(*before, -1, *after)

  def _kernel(self, tree: Params, index: jax.Array) -> jax.Array:
    """A part of the only leaf that the head has besides the norm."""
    [leaf] = jax.tree.leaves(tree[self._name])
    return self._columns(leaf, index, 0 if self._name == "embed" else 1)

  def _logits(
    self, kernel: jax.Array, x_BxCxD: jax.Array, index: jax.Array
  ) -> jax.Array:
    tree = jax.tree.structure(self._part.params[self._name])
    own = {self._name: jax.tree.unflatten(tree, [kernel])}
    model = nnx.merge(self._graph, {**self._params, **own})
    all_P = jnp.arange(self._config.padded_vocab_size)
    columns_S = self._columns(all_P, index, 0)
    return logits_of(self._config, x_BxCxD, model.head_kernel(), columns_S)

  def curvature(
    self, x_BxCxD: jax.Array, tangents: jax.Array, mask_BxC: jax.Array
  ) -> jax.Array:
    """The matrix from the norm's output and its tangents."""
    numbers = jnp.arange(self._count)
    [group] = jax.tree.leaves(self._part.group_of_leaf[self._name])

    def normaliser(
      total_BxC: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, None]:
      kernel = self._kernel(self._part.params, index)
      logits_BxCxS = self._logits(kernel, x_BxCxD, index)
      own_BxC = jax.nn.logsumexp(logits_BxCxS, axis=-1)
      return jnp.logaddexp(total_BxC, own_BxC), None

    nothing_BxC = jnp.full(mask_BxC.shape, -jnp.inf)
    normalisers_BxC, _ = jax.lax.scan(normaliser, nothing_BxC, numbers)

    def add(carry: Any, index: jax.Array) -> tuple[Any, None]:
      kernel = self._kernel(self._part.params, index)
      changes = changes_of([self._kernel(t, index) for t in self._part.trees])
      logits_BxCxS, push = jax.linearize(
        lambda x: self._logits(kernel, x, index), x_BxCxD
      )
      slopes = jax.vmap(jax.vmap(push))(tangents)
      _, push = jax.linearize(
        lambda kernel: self._logits(kernel, x_BxCxD, index), kernel
      )
      slopes = slopes.at[group].add(jax.vmap(push)(changes))
      shares_BxCxS = jnp.exp(logits_BxCxS - normalisers_BxC[..., None])
      slopes = slopes.reshape(-1, *shares_BxCxS.shape)
      own = moments_of(shares_BxCxS, slopes, mask_BxC)
      return together(carry, own, mask_BxC), None

    count = tangents.shape[0] * tangents.shape[1]
    start = (
      jnp.zeros(mask_BxC.shape),
      jnp.zeros((count, *mask_BxC.shape)),
      jnp.zeros((count, count)),
    )
    (_, _, found_RxR), _ = jax.lax.scan(add, start, numbers)
    return found_RxR


def _logits(
  graph: nnx.GraphDef, params: Params, head: Params, x: jax.Array
) -> jax.Array:
  """From the last layer's output, by a norm and head of its own."""
  model = nnx.merge(graph, {**params, **head})
  return logits_of(model.config, model.final_norm(x), model.head_kernel())


def secant_curvature(
  graph: nnx.GraphDef,
  params: Params,
  heads: Mapping[int, Params],
  x_BxLxD: jax.Array,
  moved: jax.Array,
  mask_BxL: jax.Array,
  step: float,
  *,
  local: int,
) -> jax.Array:
  """weight_curvature with secants: J = [z(w + step e_r) - z(w)] / step.

  Args:
    graph, params: the decoder at w.
    heads: by direction, the norm and head at w + step e_r where they differ;
      see head_params.
    x_BxLxD: what the last layer gives at w.
    moved: the same at w + step e_r, R x B x L x D.
    mask_BxL: bool, the targets that count.
    step: of a weight.
    local: sequences on a device.

  Returns:
    float32[R, R].
  """
  head = head_params(params)

  def chunk(arrays: tuple[jax.Array, ...]) -> jax.Array:
    x_BxCxD, moved, mask_BxC = arrays
    logits_BxCxP = _logits(graph, params, head, x_BxCxD)
    others = [
      _logits(graph, params, heads.get(r, head), moved[r])
      for r in range(len(moved))
    ]
    # Padding is -inf in both.
    slopes = (jnp.stack(others) - logits_BxCxP) / step
    slopes = jnp.where(jnp.isfinite(logits_BxCxP), slopes, 0.0)
    return curvature_of_slopes(logits_BxCxP, slopes, mask_BxC)

  width = nnx.merge(graph, params).config.padded_vocab_size
  most = min(_MOST_POSITIONS, _SLOPES // (4 * local * len(moved) * width))
  count = _divisor(x_BxLxD.shape[1], most)
  parts = functools.partial(_parts, count=count)
  found = jax.lax.map(
    chunk, (parts(x_BxLxD, 1), parts(moved, 2), parts(mask_BxL, 1))
  )
  return jnp.sum(found, axis=0)


def _divisor(number: int, most: int) -> int:
  """The largest divisor that is no larger than `most`, or one."""
  return max(n for n in range(1, max(most, 1) + 1) if number % n == 0)


def _parts(array: jax.Array, axis: int, count: int) -> jax.Array:
  """Splits an axis into parts of so many, a new first axis."""
  before, after = array.shape[:axis], array.shape[axis + 1 :]
  return jnp.moveaxis(array.reshape(*before, -1, count, *after), axis, 0)
