"""Says what a merge is going to do."""

import math
from collections.abc import Iterator

import numpy as np

from jaxmerge.checkpoints.inputs import DECODER
from jaxmerge.files import human_bytes
from jaxmerge.merging.merge_plan import MergePlan
from jaxmerge.parallel.rules import named_leaves

# Bytes a second, read and written together, of a merge on two CPU cores whose
# files are in memory already (docs/results/merge.md).
_BYTES_A_SECOND = {"step directories": 400e6, "Hugging Face": 1500e6}


def describe(plan: MergePlan, free: float) -> str:
  """Says what a merge will do where `free` bytes are, from the metadata."""
  read = plan.size * len(plan.read)
  method = plan.method
  is_step = plan.sources[0].layout == DECODER
  kind = "step directories" if is_step else "Hugging Face"
  entries = sum(math.prod(spec.shape) for spec in plan.specs.values())
  where, measuring = "streamed in chunks", ""
  if method.data:
    where, measuring = "trees on the devices", ", and the time of measuring"
    if method.acts != "on models":
      where += ", or in host memory or in storage where they do not fit"
  elif method.acts == "on grams":
    read += read - plan.size
    measuring = "; all are read for their weights, then all but the oldest"
  notes = [f"  {note}" for note in plan.copied.notes]
  seconds = max((read + plan.size) / _BYTES_A_SECOND[kind], 1)
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
  return "\n".join(rows + list(_groups(plan)) + notes)


def _groups(plan: MergePlan) -> Iterator[str]:
  """A line for each group of parameters: how large it is, what it weighs."""
  if plan.groups is None:
    return
  names_G = plan.groups.names_G
  sizes_G = np.zeros(len(names_G), np.int64)
  for name, index in named_leaves(plan.groups.of_leaf).items():
    if name in plan.specs:
      size = math.prod(plan.specs[name].shape)
      np.add.at(sizes_G, index, size // index.size)
  yield f"{len(names_G)} groups of parameters"
  for name, count, weights_K in zip(names_G, sizes_G, plan.weights_GxK):
    weights = " ".join(f"{weight:.6f}" for weight in weights_K)
    yield f"  {weights}  {name} ({count:,} numbers)"
