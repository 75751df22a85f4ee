"""Log-likelihoods of choices behind their prompts, and what is right by them.

N items, C choices of an item at most, B rows of a batch, L inputs of a row,
T targets of a row.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import InputError
from jaxmerge.evaluation import choice_scores
from jaxmerge.evaluation.choice_rows import (
  MOST_PARTS,
  Rows,
  rows_of,
  sums_by_item,
)
from jaxmerge.evaluation.held_out_splits import check_batch
from jaxmerge.evaluation.score import Score
from jaxmerge.evaluation.task_config import METRICS
from jaxmerge.evaluation.tasks.task import ChoiceItem
from jaxmerge.model.attention import Branches
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import Decoder, abstract_decoder
from jaxmerge.model.execution import choose
from jaxmerge.model.loss import losses_of_hidden
from jaxmerge.parallel.rules import batch_sharding, batch_shards, replicated


class _Batch(NamedTuple):
  """Rows on the devices; no branches where they are plain."""

  tokens_BxL: jax.Array
  branches: Branches | None
  input_BxT: jax.Array
  target_BxT: jax.Array


@functools.cache
def _graph_of(config: DecoderConfig) -> nnx.GraphDef:
  """The decoder's structure, once for the many tasks of a model."""
  return abstract_decoder(config)[0]


@jax.jit(static_argnums=(0, 1))
def batch_nats(
  graph: nnx.GraphDef, mesh: Mesh, params: Any, batch: _Batch
) -> jax.Array:
  """-log p of each target, float32[B, T]; those of padding mean nothing.

  Logits are of targets alone, whose inputs are gathered before the head.
  """
  model: Decoder = nnx.merge(graph, params)
  (rows, length), targets = batch.tokens_BxL.shape, batch.target_BxT.shape[1]
  attention = "auto" if batch.branches is None else "xla"
  trunk, head = (
    choose(
      model.config,
      mesh,
      length=count,
      batch=rows,
      attention=attention,
      falls_back=True,
    )
    for count in (length, targets)
  )
  x_BxLxD = model.hidden(batch.tokens_BxL, batch.branches, trunk)
  x_BxTxD = jnp.take_along_axis(x_BxLxD, batch.input_BxT[..., None], axis=1)
  found = losses_of_hidden(model, x_BxTxD, batch.target_BxT, head)
  return jax.lax.with_sharding_constraint(found.losses_BxL, replicated(mesh))


class Choices:
  """Scores parameters on the items of one task.

  An item is a question with choices: its value is by the metric, its cluster
  the item's own. Score.tokens are inputs, of a shared prompt once.

  Args:
    config: of the model.
    mesh: where to compute.
    items: where only the first ones are scored, in an order that makes them a
      sample of all.
    tokenizer: the model's.
    context: its positions; longer prompts lose their left end.
    batch_size: rows scored at once, over all devices.
    metric: that `score` gives, one of METRICS.
    shares: a prompt is computed once for all its choices. Never where RoPE
      depends on a text's length ("dynamic"), as each choice makes its own.

  Attributes:
    num_cut: items whose prompt was cut at its left.
    num_inputs: that a score of all items takes, of a shared prompt once.

  Raises:
    InputError: lists choices that are too long, or tokens that the model does
      not know, or what does not fit the mesh.
  """

  def __init__(
    self,
    config: DecoderConfig,
    mesh: Mesh,
    items: Sequence[ChoiceItem],
    tokenizer: Tokenizer,
    *,
    context: int,
    batch_size: int,
    metric: str = "acc",
    shares: bool = True,
  ):
    check_batch(batch_size, mesh)
    if metric not in METRICS:
      raise InputError(
        f"the metric must be one of {', '.join(METRICS)}, got {metric!r}"
      )
    if MOST_PARTS % mesh.shape["context"]:
      raise InputError(
        f"config.mesh.context {mesh.shape['context']} does not divide "
        f"{MOST_PARTS}, of which lengths of rows of choices are multiples then"
      )
    encoded = choice_scores.encode(items, tokenizer, context)
    ids = (i.max() for item in encoded for i in (item.prompt, *item.choices))
    if (largest := int(max(ids))) >= config.vocab_size:
      raise InputError(
        f"the checkpoint's tokenizer gives token {largest} for text of the "
        f"items, but its model knows {config.vocab_size} tokens"
      )
    scaling = config.rope_scaling
    self._is_dynamic = scaling is not None and scaling.kind == "dynamic"
    self._rows = rows_of(
      encoded,
      shares=shares and not self._is_dynamic,
      parts=mesh.shape["context"],
    )
    self._graph = _graph_of(config)
    self._mesh = mesh
    self._items = items
    self._batch_size = batch_size
    self._metric = metric
    self.num_cut = sum(item.is_cut for item in encoded)
    self.num_inputs = sum(rows.inputs for rows in self._rows)

  def score(self, params: Any, upto: int | None = None) -> Score:
    """The score by the metric, of the first `upto` items (None: all)."""
    return self.scores(params, upto)[self._metric]

  def extend(self, params: Any, known: Score, upto: int) -> Score:
    """As score, without the items of which an earlier call gave `known`."""
    start = len(known.values_N)
    if start >= min(upto, len(self._items)):
      return dataclasses.replace(known, tokens=0)
    logs_NxC, tokens = self._log_likelihoods(params, start, upto)
    new = choice_scores.scores(self._items[start:upto], logs_NxC, tokens)
    found = new[self._metric]
    return dataclasses.replace(
      found,
      values_N=np.append(known.values_N, found.values_N),
      weights_N=np.append(known.weights_N, found.weights_N),
      clusters_N=choice_scores.clusters(self._items[:upto]),
    )

  def scores(self, params: Any, upto: int | None = None) -> dict[str, Score]:
    """The scores by every metric, of one evaluation, as score."""
    logs_NxC, tokens = self._log_likelihoods(params, 0, upto)
    return choice_scores.scores(self._items[:upto], logs_NxC, tokens)

  def log_likelihoods(self, params: Any) -> np.ndarray:
    """Nats, float64[N, C]; -inf where an item has no such choice."""
    return self._log_likelihoods(params)[0]

  def _log_likelihoods(
    self, params: Any, start: int = 0, stop: int | None = None
  ) -> tuple[np.ndarray, int]:
    """Those of items from `start` up to `stop`, and the inputs they took."""
    stop = len(self._items) if stop is None else stop
    kinds = [_between(rows, start, stop) for rows in self._rows]
    kinds = [rows for rows in kinds if len(rows.item_R)]
    # All are on their way before any is waited for.
    found = [
      [
        batch_nats(self._graph, self._mesh, params, batch)
        for batch in self._batches(rows)
      ]
      for rows in kinds
    ]
    logs = [
      -np.concatenate([*map(np.asarray, batches)])[: len(rows.item_R)]
      for rows, batches in zip(kinds, found)
    ]
    return sums_by_item(kinds, logs), sum(rows.inputs for rows in kinds)

  def _batches(self, rows: Rows) -> Iterator[_Batch]:
    """Rows of one length in batches of one size, with little padding."""
    number = len(rows.item_R)
    size = batch_rows(number, self._batch_size, batch_shards(self._mesh))
    sharding = batch_sharding(self._mesh)

    def place(values: np.ndarray, start: int) -> jax.Array:
      part = values[start : start + size]
      padded = np.pad(part, [(0, size - len(part)), (0, 0)], mode="edge")
      return jax.make_array_from_callback(
        padded.shape, sharding, padded.__getitem__
      )

    for start in range(0, number, size):
      branches = None
      if self._is_dynamic or not rows.is_plain:
        branches = Branches(
          place(rows.branch_RxL, start), place(rows.position_RxL, start)
        )
      yield _Batch(
        place(rows.tokens_RxL, start),
        branches,
        place(rows.input_RxT, start),
        place(rows.target_RxT, start),
      )


def _between(rows: Rows, start: int, stop: int) -> Rows:
  """The rows of items from `start` up to `stop`, which are numbered anew."""
  is_there_R = (rows.item_R >= start) & (rows.item_R < stop)
  some = Rows(*(values[is_there_R] for values in rows))
  return some._replace(item_R=some.item_R - start)


def batch_rows(rows: int, most: int, shards: int) -> int:
  """Rows of each of the fewest batches, `most` at most, with little padding.

  One of some ten sizes, so that tasks share programs: eighths of `most` and
  powers of two, times `shards`.
  """
  batches = -(-rows // most)
  each = -(-rows // batches // shards)  # of a shard
  step = max(most // 8 // shards, 1)
  whole = min(-(-each // step) * step, 1 << (each - 1).bit_length())
  return min(whole * shards, most)
