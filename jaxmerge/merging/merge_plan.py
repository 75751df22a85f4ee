"""A merge whose inputs are known: what it takes, and doing it.

Chunks of the inputs are read, merged and written; no tree is ever whole in
memory.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxmerge.checkpoints.inputs import (
  DECODER,
  Checkpoint,
  check_step_directories,
)
from jaxmerge.checkpoints.merged import Readings, save_merged_rows
from jaxmerge.errors import Problems
from jaxmerge.files import check_room, human_bytes
from jaxmerge.formats.lazy_tensors import TensorSpec
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.formats.records.provenance import Provenance
from jaxmerge.merging import chunks, streaming
from jaxmerge.merging.groups import Groups, layer_groups
from jaxmerge.merging.method import Method, average_weights, bands_of
from jaxmerge.merging.weight_checks import normalise, weighing
from jaxmerge.progress import Progress

# Bytes a second, read and written together, of a merge on two CPU cores whose
# files are in memory already (docs/results/merge.md).
_BYTES_A_SECOND = {"step directories": 400e6, "Hugging Face": 1500e6}


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
    needed: bytes of memory for parameters.
    workers: chunks that are made at the same time.
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
  needed: int = 0
  workers: int = chunks.WORKERS

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
    )


def plan_merge(
  method: Method,
  knobs: Any,
  sources: Sequence[Checkpoint],
  base: Checkpoint | None,
  weights: Sequence[float],
  *,
  budget: float,
  output: epath.PathLike,
) -> MergePlan:
  """Finds the weights that are known, and what the merge needs.

  Args:
    method, knobs, weights: in which methods.problems finds nothing.
    sources: the K checkpoints.
    base: what all came from, for methods that need it.
    budget: bytes of memory for parameters.
    output: where it is to write.

  Raises:
    InputError: a source is damaged, it has not so many layers, or more memory
      or disk is needed.
  """
  plan = MergePlan(method, knobs, sources, base, weights, False, budget)
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
  return _sized(plan, output)


def _sized(plan: MergePlan, output: epath.PathLike) -> MergePlan:
  """The plan with its specs, and as many workers as its memory allows."""
  method = plan.method
  leaves = [checkpoint.open_leaves() for checkpoint in plan.read]
  plan = plan._replace(
    specs=chunks.specs(leaves, by_layer=method.whole or plan.groups is not None)
  )

  def needed(workers: int) -> int:
    if method.data:  # a merged tree, and all others where there is room
      all_at_once = method.acts == "on models"
      return plan.size * (len(plan.sources) + 1 if all_at_once else 2)
    return chunks.needed_bytes(
      plan.specs,
      0 if plan.is_average else len(plan.read),
      whole=method.whole,
      workers=workers,
    )

  # One alone is copied whatever it holds; measured, it may get no weight.
  summed = len(plan.read) > 1 and not method.data
  problems = Problems(_not_finite(plan.read) if summed else ())
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


def _not_finite(sources: Sequence[Checkpoint]) -> list[str]:
  """Names parameters that a step directory's own metadata calls not finite."""
  return [
    f"{source.name}: {name} holds NaN or Inf"
    for source in sources
    for name, leaf in source.metadata.leaves["params"].items()
    if leaf.get("norm", 0.0) is None
  ]


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
  weights = plan.weights_K
  trees = chunks.stored(readings, plan.uses_K)
  work: streaming.Average | streaming.Tensors
  if plan.groups:
    work = streaming.Average(
      trees, streaming.weights_of_groups(plan.weights_GxK, plan.groups)
    )
  elif plan.is_average:
    work = streaming.Average(trees, lambda _: weights)
  else:
    used, typed = weighing(trees, weights)
    weights_K = plan.method.usable(typed, plan.knobs)
    base = chunks.stored(of_base, [1.0])[0] if of_base else None
    work = streaming.Tensors(plan.method, plan.knobs, used, weights_K, base)
  count = itertools.count(1)
  made = chunks.in_order(
    work,
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


def describe(plan: MergePlan, free: float) -> str:
  """Says what a merge will do where `free` bytes are, from the metadata."""
  read = plan.size * len(plan.read)
  method = plan.method
  is_step = plan.sources[0].layout == DECODER
  kind = "step directories" if is_step else "Hugging Face"
  seconds = max((read + plan.size) / _BYTES_A_SECOND[kind], 1)
  entries = sum(math.prod(spec.shape) for spec in plan.specs.values())
  where, measuring = "streamed in chunks", ""
  if method.data:
    where, measuring = "trees on the devices", ", and the time of measuring"
    if method.acts == "on losses":
      where += ", or in host memory or in storage where they do not fit"
  rows = [
    f"{method.name}: {len(plan.specs)} tensors of {entries:,} numbers",
    f"read {human_bytes(read)}, write {human_bytes(plan.size)} "
    f"({human_bytes(free)} free)",
    f"memory {human_bytes(plan.needed)} for parameters, {where}",
    f"about {seconds:.0f} s where files are in memory already{measuring}",
  ]
  shown = [f"{w:.6f}" for w in plan.weights]
  shown = shown or [method.name] * len(plan.sources)
  for weight, source in zip(shown, plan.sources):
    step = source.metadata.step
    known = f"step {step}" if step else "step not known"
    rows.append(f"  {weight}  {source.name} ({known})")
  if plan.base:
    rows.append(f"  base  {plan.base.name}")
  return "\n".join(rows)
