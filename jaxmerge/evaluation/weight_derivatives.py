"""Derivatives of a held-out loss by the weights of a merge.

N sequences, B sequences at once, L targets a sequence; G groups, K checkpoints,
J = K - 1 differences to the last one, R = G J directions.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxmerge.data.heldout import HeldOut
from jaxmerge.evaluation.evaluator import Setting
from jaxmerge.evaluation.held_out_splits import text_of
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.merging.groups import Groups
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.curvature import classes_of, weight_curvature
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.model.execution import Execution, choose
from jaxmerge.model.tangents import Merge
from jaxmerge.model.weight_gradients import sequences_at_once, weight_gradients
from jaxmerge.parallel.rules import batch_sharding, batch_shards, replicated


def plain_execution(
  graph: nnx.GraphDef, params: Any, mesh: Mesh, batch: int, length: int
) -> Execution:
  """The execution of so many sequences that has a forward mode."""
  config = nnx.merge(graph, params).config
  found = choose(config, mesh, length=length, batch=batch, attention="xla")
  return dataclasses.replace(found, rows=False, own_backward=False)


class WeightDerivatives:
  """Differentiates the summed losses of sequences by the weights of a merge.

  Args:
    graph: the decoder's structure.
    mesh: where to compute.
    split: the sequences.
    trees: the K trees, on the devices.
    groups: of parameters with weights of their own.
  """

  def __init__(
    self,
    graph: nnx.GraphDef,
    mesh: Mesh,
    split: HeldOut,
    trees: Sequence[Any],
    groups: Groups,
  ):
    self._graph = graph
    self._mesh = mesh
    self._split = split
    self._trees = tuple(trees)
    self._groups = groups

  def gradients(self, params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Losses, float64[N], and their gradients, float64[N, G, K]."""
    length = self._split.mask_NxL.shape[1]
    at_once = sequences_at_once(self._graph, params, length)
    rows = range(len(self._split.mask_NxL))
    program = _gradients(self._graph, self._mesh, self._groups)
    merge = Merge(params, self._trees, self._groups.of_leaf)
    found = [
      _differentiate(program, merge, *batch)
      for batch in batches(self._split, self._mesh, rows, at_once)
    ]
    losses_N, gradients_NxGxJ = (
      np.concatenate([np.asarray(x, np.float64) for x in part])[: len(rows)]
      for part in zip(*found)
    )
    return losses_N, np.pad(gradients_NxGxJ, [(0, 0), (0, 0), (0, 1)])

  def curvature(self, params: Any, rows: Sequence[int]) -> np.ndarray:
    """The Gauss-Newton matrix of the mean of some sequences.

    Returns:
      float64[G K, G K], by group and checkpoint; those of the last are 0.
    """
    total_RxR: Any = 0.0
    program = _curvature(self._graph, self._mesh, self._groups)
    merge = Merge(params, self._trees, self._groups.of_leaf)
    for batch in batches(self._split, self._mesh, rows):
      found = _differentiate(program, merge, *batch)
      total_RxR = total_RxR + np.asarray(found, np.float64)
    return whole_matrix(
      total_RxR / int(self._split.mask_NxL[list(rows)].sum()),
      len(self._groups.names_G),
    )


def batch_size(shards: int, sequences: int, at_once: int) -> int:
  """Sequences of a batch: so many a device, and no more than there are."""
  return shards * min(at_once, -(-sequences // shards))


def batches(
  split: HeldOut, mesh: Mesh, rows: Sequence[int], at_once: int = 1
) -> Iterator[tuple[jax.Array, jax.Array]]:
  """Tokens and masks of some sequences, so many at a time on each device.

  The last are padded by sequences that do not count.
  """
  sharding = batch_sharding(mesh)
  size = batch_size(batch_shards(mesh), len(rows), at_once)
  for start in range(0, len(rows), size):
    some = list(rows[start : start + size])
    widths = [(0, size - len(some)), (0, 0)]
    tokens = np.pad(split.tokens_NxL1[some].astype(np.int32), widths)
    mask = np.pad(split.mask_NxL[some].astype(np.bool_), widths)
    yield (
      jax.make_array_from_callback(tokens.shape, sharding, tokens.__getitem__),
      jax.make_array_from_callback(mask.shape, sharding, mask.__getitem__),
    )


def derivative_bytes(
  setting: Setting, count: int, groups: Groups, sequences: int
) -> int:
  """As EvaluatorRecord.derivative_bytes, of the loss of a split's sequences."""
  metadata = setting.metadata
  graph, _ = abstract_decoder(DecoderConfig.from_dict(metadata.model))
  shapes = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    abstract_params(metadata),
    setting.shardings,
  )
  length = text_of(setting)[2]
  return planned_bytes(
    graph, setting.mesh, shapes, count, groups, length, sequences
  )


def planned_bytes(
  graph: nnx.GraphDef,
  mesh: Mesh,
  shapes: Any,
  count: int,
  groups: Groups,
  length: int,
  sequences: int,
) -> int:
  """Bytes on each device that derivatives take beside the trees.

  As the compiler says: it compiles the programs that will run, the gradients'
  and the curvature's.

  Args:
    graph: the decoder's structure.
    mesh: where they are computed.
    shapes: a tree of jax.ShapeDtypeStruct with shardings.
    count: K.
    groups: of parameters with weights of their own.
    length: L.
    sequences: N.
  """
  merge = Merge(shapes, (shapes,) * count, groups.of_leaf)
  shards = batch_shards(mesh)
  where = batch_sharding(mesh)
  at_once = sequences_at_once(graph, shapes, length)

  def batch(rows: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    return (
      jax.ShapeDtypeStruct((rows, length + 1), np.int32, sharding=where),
      jax.ShapeDtypeStruct((rows, length), np.bool_, sharding=where),
    )

  several = batch_size(shards, sequences, at_once)
  lowered = (
    _differentiate.lower(program(graph, mesh, groups), merge, *batch(rows))
    for program, rows in ((_gradients, several), (_curvature, shards))
  )
  found = [each.compile().memory_analysis() for each in lowered]
  return max(int(analysis.temp_size_in_bytes) for analysis in found if analysis)


def first_of_clusters(clusters_N: np.ndarray, count: int) -> list[int]:
  """At most so many items of different clusters, the first of each."""
  _, first = np.unique(clusters_N, return_index=True)
  return sorted(first.tolist())[:count]


def whole_matrix(matrix_RxR: np.ndarray, num_groups: int) -> np.ndarray:
  """Puts in the last checkpoint's rows and columns of zeros."""
  each = len(matrix_RxR) // num_groups
  matrix = matrix_RxR.reshape(num_groups, each, num_groups, each)
  matrix = np.pad(matrix, [(0, 0), (0, 1)] * 2)
  size = num_groups * (each + 1)
  return matrix.reshape(size, size)


class _Program(NamedTuple):
  """A function of model/ and its keywords beside num_groups."""

  function: Callable[..., Any]
  graph: nnx.GraphDef
  mesh: Mesh
  num_groups: int
  more: tuple[tuple[str, Any], ...]


def _gradients(graph: nnx.GraphDef, mesh: Mesh, groups: Groups) -> _Program:
  more = (("shards", batch_shards(mesh)),)
  return _Program(weight_gradients, graph, mesh, len(groups.names_G), more)


def _curvature(graph: nnx.GraphDef, mesh: Mesh, groups: Groups) -> _Program:
  more = (("classes", classes_of(groups.of_leaf)),)
  return _Program(weight_curvature, graph, mesh, len(groups.names_G), more)


@partial(jax.jit, static_argnums=0)
def _differentiate(
  program: _Program, merge: Merge, tokens_BxL1: jax.Array, mask_BxL: jax.Array
) -> Any:
  graph, mesh = program.graph, program.mesh
  found = program.function(
    graph,
    merge,
    tokens_BxL1,
    mask_BxL,
    plain_execution(graph, merge.params, mesh, *mask_BxL.shape),
    num_groups=program.num_groups,
    **dict(program.more),
  )
  return jax.lax.with_sharding_constraint(found, replicated(mesh))
