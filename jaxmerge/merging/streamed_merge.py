"""A merge that has been planned, from storage to storage.

Chunks of the inputs are read, merged and written; no tree is ever whole in
memory.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from etils import epath

from jaxmerge.checkpoints.merged import Readings, save_merged_rows
from jaxmerge.formats.integrity.norms import all_finite
from jaxmerge.formats.lazy_tensors import Chunk
from jaxmerge.merging import chunks, streaming
from jaxmerge.merging.differences import streamed_weights
from jaxmerge.merging.grouped_weights import tied_copies
from jaxmerge.merging.merge_plan import MergePlan
from jaxmerge.merging.method import knobs_of_inputs
from jaxmerge.merging.weight_checks import weighing
from jaxmerge.progress import Progress


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


def _weighed(
  plan: MergePlan, readings: Readings, progress: Progress
) -> MergePlan:
  """The plan with the weights of a method that acts on grams."""
  name, count = plan.method.name, itertools.count(1)
  left = {*plan.copied.names, *tied_copies(plan.sources)}
  averaged = {n: spec for n, spec in plan.specs.items() if n not in left}
  weights = streamed_weights(
    plan.method,
    plan.knobs,
    readings,
    averaged,
    plan.wide,
    plan.workers,
    lambda leaf: progress.stage(name, next(count), len(averaged), leaf),
  )
  told = ", ".join(f"{weight:.6f}" for weight in weights)
  progress.note("merge", f"weights {told}, the oldest input first")
  return plan._replace(weights=weights, is_average=True)


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
  if plan.method.acts == "on grams":
    plan = _weighed(plan, readings, progress)
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
    chunks.chunks(
      plan.specs, whole=plan.method.whole, by_layer=plan.groups is not None
    ),
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
