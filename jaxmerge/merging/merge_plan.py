"""A merge whose inputs are known: what it takes, and doing it.

Chunks of the inputs are read, merged and written; no tree is ever whole in
memory.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxmerge.checkpoints.copied_tensors import Copied, find_copied
from jaxmerge.checkpoints.input_order import (
  describe_order,
  find_order,
  latest,
)
from jaxmerge.checkpoints.inputs import Checkpoint, check_step_directories
from jaxmerge.checkpoints.merged import Readings, save_merged_rows
from jaxmerge.errors import Problems
from jaxmerge.files import check_room, human_bytes
from jaxmerge.formats.integrity.norms import all_finite
from jaxmerge.formats.lazy_tensors import Chunk, TensorSpec
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.formats.records.provenance import Provenance
from jaxmerge.merging import chunks, streaming
from jaxmerge.merging.groups import Groups, layer_groups
from jaxmerge.merging.method import (
  Method,
  average_weights,
  bands_of,
  knobs_of_inputs,
)
from jaxmerge.merging.weight_checks import normalise, weighing
from jaxmerge.progress import Progress


class MergePlan(NamedTuple):
  """A merge whose inputs have been checked.

  Attributes:
    sources: the K checkpoints.
    base: what all came from, for methods that need it.
    weights: as typed, or as the method gives them; empty: none.
    is_average: whether the weights say all.
    budget: bytes of memory for parameters.
    groups: of an average whose weights differ between groups.
    weights_GxK: of the groups; each row sums to one.
    dtype: asked of the output's weights; "" for the widest of the inputs.
    copied: tensors that are no weights.
    wide: dtypes in which others are merged, which hold those of all inputs.
    needed: bytes of memory for parameters.
    workers: chunks that are made at the same time.
    order: what is to be said of the order of the inputs.
  """

  method: Method
  knobs: Any
  sources: Sequence[Checkpoint]
  base: Checkpoint | None
  weights: Sequence[float]
  is_average: bool
  budget: float
  groups: Groups | None = None
  weights_GxK: Sequence[Sequence[float]] = ()
  specs: Mapping[str, TensorSpec] = {}
  dtype: str = ""
  copied: Copied = Copied()
  wide: Mapping[str, np.dtype] = {}
  needed: int = 0
  workers: int = chunks.WORKERS
  order: str = ""

  @property
  def size(self) -> int:
    """Bytes of one tree."""
    return sum(spec.nbytes for spec in self.specs.values())

  @property
  def read(self) -> list[Checkpoint]:
    """The inputs that are read, the base first, none of weight zero."""
    used, _ = weighing(self.sources, self.uses_K)
    return [*([self.base] if self.base else []), *used]

  @property
  def latest(self) -> Checkpoint:
    """The latest of the inputs that are read, the base if no other is."""
    used, _ = weighing(self.sources, self.uses_K)
    return latest(used or self.read)

  @property
  def weights_K(self) -> Sequence[float]:
    """As typed or as the method gives them, else equal ones."""
    return self.weights or self.method.equal_weights(len(self.sources))

  @property
  def uses_K(self) -> list[float]:
    """Above zero for sources that weigh anything anywhere."""
    rows = self.weights_GxK or [self.weights_K]
    return [max(map(abs, column)) for column in zip(*rows, strict=True)]

  @property
  def provenance(self) -> Provenance:
    """The origin of the merge, as its output says it."""
    names_G = self.groups.names_G if self.groups else ()
    return Provenance(
      self.method.name,
      self.weights_K,
      groups=dict(zip(names_G, self.weights_GxK, strict=True)),
      parameters=dataclasses.asdict(self.knobs),
      notes=self.copied.notes,
    )


def plan_merge(
  method: Method,
  knobs: Any,
  sources: Sequence[Checkpoint],
  base: Checkpoint | None,
  weights: Sequence[float],
  *,
  budget: float,
  dtype: str,
  output: epath.PathLike,
) -> MergePlan:
  """Finds the weights that are known, and what the merge needs.

  Args:
    method, knobs, weights: in which methods.problems finds nothing.
    sources: the K checkpoints.
    base: what all came from, for methods that need it.
    budget: bytes of memory for parameters.
    dtype: of the output's weights; "" for the widest of the inputs.
    output: where it is to write.

  Raises:
    InputError: a source is damaged, it has not so many layers, a tensor that
      is no weight differs, or more memory or disk is needed.
  """
  order = ""
  if method.ordered:
    sources, knobs, weights, order = _oldest_first(sources, knobs, weights)
  plan = MergePlan(
    method, knobs, sources, base, weights, False, budget, dtype=dtype
  )._replace(order=order)
  if bands_of(knobs):
    check_step_directories(sources)
    tree = abstract_params(sources[0].metadata)
    groups = layer_groups(tree, bands_of(knobs))
    rows = [
      normalise(row) for row in np.reshape(weights, (-1, len(sources))).tolist()
    ]
    plan = plan._replace(
      groups=groups, weights_GxK=rows, weights=groups.mean_weights(rows)
    )
  # Without a base, one that weighs alone is what the merge gives.
  is_alone = method.on_tensors and sum(w != 0 for w in plan.weights) == 1
  if method.acts == "on weights" or (is_alone and not method.base):
    usable = method.usable(plan.weights_K, knobs)
    if method.acts == "on weights":
      usable = average_weights(method, usable, knobs)
    plan = plan._replace(weights=list(usable), is_average=True)
  return sized(plan, output)


def _oldest_first(
  sources: Sequence[Checkpoint], knobs: Any, weights: Sequence[float]
) -> tuple[Sequence[Checkpoint], Any, Sequence[float], str]:
  """All that belongs to the inputs in their order, and what is said of it."""
  order = find_order(sources)
  indices = order.oldest_first_K
  rows_GxK = np.reshape(weights, (-1, len(sources)))
  return (
    [sources[k] for k in indices],
    knobs_of_inputs(knobs, indices),
    rows_GxK[:, indices].ravel().tolist(),
    describe_order(sources, order),
  )


def sized(plan: MergePlan, output: epath.PathLike) -> MergePlan:
  """The plan with its specs, and as many workers as its memory allows."""
  method = plan.method
  leaves = [checkpoint.open_leaves() for checkpoint in plan.read]
  several = len(leaves) > 1 and method.acts != "on models"
  copied = find_copied(leaves, plan.dtype) if several else Copied()
  by_layer = method.whole or plan.groups is not None
  newest = plan.latest
  of_latest = [tree for c, tree in zip(plan.read, leaves) if c is newest]
  kept = chunks.specs(of_latest, by_layer=by_layer)
  specs = chunks.specs(leaves, by_layer=by_layer, dtype=plan.dtype)
  specs |= {n: spec for n, spec in kept.items() if n in copied.names}
  wide = chunks.widened(leaves, specs)
  plan = plan._replace(specs=specs, copied=copied, wide=wide)

  def needed(workers: int) -> int:
    if method.data:  # a merged tree, and all others where there is room
      all_at_once = method.acts == "on models"
      return plan.size * (len(plan.sources) + 1 if all_at_once else 2)
    return chunks.needed_bytes(
      {
        name: dataclasses.replace(spec, dtype=wide.get(name, spec.dtype))
        for name, spec in specs.items()
      },
      0 if plan.is_average else len(plan.read),
      whole=method.whole,
      workers=workers,
    )

  # One alone is copied whatever it holds; measured, it may get no weight.
  summed = len(plan.read) > 1 and not method.data
  problems = Problems(_not_finite(plan) if summed else ())
  problems(lambda: check_room(output, plan.size))
  possible = range(chunks.WORKERS, 0, -1)
  workers = next((n for n in possible if needed(n) <= plan.budget), 1)
  if needed(workers) > plan.budget:
    problems.add(
      f"{human_bytes(needed(1))} of memory are needed for parameters, "
      f"{human_bytes(plan.budget)} may be used; see --memory_budget_gb"
    )
  problems.check()
  return plan._replace(needed=needed(workers), workers=workers)


def _not_finite(plan: MergePlan) -> list[str]:
  """Names parameters that a step directory's own metadata calls not finite."""
  return [
    f"{source.name}: {name} holds NaN or Inf"
    for source in plan.read
    for name, leaf in source.metadata.leaves["params"].items()
    if leaf.get("norm", 0.0) is None and name not in plan.copied.names
  ]


def _work(
  plan: MergePlan,
  trees: Sequence[chunks.Stored],
  base: chunks.Stored | None,
) -> streaming.Average | streaming.Tensors:
  """Returns what makes a chunk of the merge from chunks of the trees."""
  weights = plan.weights_K
  if plan.groups:
    of_name = streaming.weights_of_groups(plan.weights_GxK, plan.groups)
    return streaming.Average(trees, of_name)
  if plan.is_average:
    return streaming.Average(trees, lambda _: weights)
  used_K, typed = weighing(range(len(trees)), weights)
  knobs = knobs_of_inputs(plan.knobs, used_K)
  weights_K = plan.method.usable(typed, knobs)
  used = [trees[k] for k in used_K]
  return streaming.Tensors(plan.method, knobs, used, weights_K, base)


def run_streamed(
  plan: MergePlan,
  output: epath.PathLike,
  *,
  overwrite: bool,
  progress: Progress,
) -> None:
  """Merges from storage to storage.

  Raises:
    InputError: a source is damaged or not finite, or the output cannot be
      written; then nothing is left behind.
  """
  readings = Readings.of(plan.sources)
  of_base = Readings.of([plan.base]) if plan.base else None
  trees = chunks.stored(readings, plan.uses_K, plan.wide)
  base = chunks.stored(of_base, [1.0], plan.wide)[0] if of_base else None
  work = _work(plan, trees, base)
  for note in plan.copied.notes:
    progress.note("merge", note)
  newest = plan.latest
  [kept] = [
    tree
    for source, tree in zip([plan.base, *plan.sources], [base, *trees])
    if source is newest and tree
  ]

  def make(chunk: Chunk) -> np.ndarray:
    if chunk.name in plan.copied.names:
      return kept.read(chunk)
    array, dtype = work(chunk), plan.specs[chunk.name].dtype
    with np.errstate(over="ignore"):
      found = array.astype(dtype, copy=False)
    if dtype != array.dtype and not all_finite(found) and all_finite(array):
      work.problems.add(streaming.too_large(chunk.name))
    return found

  count = itertools.count(1)
  made = chunks.in_order(
    make,
    chunks.chunks(plan.specs, whole=plan.method.whole),
    plan.workers,
    lambda name: progress.stage("merge", next(count), len(plan.specs), name),
  )
  save_merged_rows(
    output,
    plan.specs,
    made,
    readings,
    plan.provenance,
    lambda: sorted(work.problems),
    base=of_base,
    overwrite=overwrite,
  )
