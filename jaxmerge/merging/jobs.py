"""A merge whose inputs are known: what it takes, and doing it.

Portions of the inputs are read, merged and written; no tree is ever whole in
memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxmerge.checkpoints.leaves import LeafSpec, Rows
from jaxmerge.checkpoints.merged import Readings, Recipe, save_merged_rows
from jaxmerge.checkpoints.trajectory import DECODER, Checkpoint
from jaxmerge.errors import Problems
from jaxmerge.files import check_room, human_bytes
from jaxmerge.merging import methods, streaming
from jaxmerge.merging.average import normalise, weighing
from jaxmerge.merging.groups import Groups, layer_groups

Progress = Callable[[str, int, int, str], None]

# Bytes a second, read and written together, of a merge on two CPU cores whose
# files are in memory already (docs/results/merge.md).
_BYTES_A_SECOND = {"step directories": 400e6, "Hugging Face": 1500e6}


class WeightGroups(NamedTuple):
  """Weights of their own for groups of parameters.

  Attributes:
    groups: of the parameters.
    weights_GxK: each row sums to one.
  """

  groups: Groups
  weights_GxK: Sequence[Sequence[float]]

  @property
  def mean_weights(self) -> list[float]:
    """Of all parameters together."""
    shares_G = np.array(self.groups.shares_G)
    return (shares_G @ np.array(self.weights_GxK)).tolist()

  @property
  def by_name(self) -> dict[str, Sequence[float]]:
    return dict(zip(self.groups.names_G, self.weights_GxK, strict=True))

  def of_portions(self) -> Callable[[streaming.Portion], Sequence[float]]:
    return streaming.weights_of_groups(self.weights_GxK, self.groups)


def grouped(tree: Any, bands: int, weights: Sequence[float]) -> WeightGroups:
  """Weights as typed: those of the embeddings, of each band, of the head.

  Args:
    tree: shapes of a decoder's parameters.
    bands: bands of layers.
    weights: K for each group, one group after the other.

  Raises:
    InputError: there are not so many layers, or a group's weights are not
      usable.
  """
  groups = layer_groups(tree, bands)
  rows = np.reshape(weights, (len(groups.names_G), -1)).tolist()
  return WeightGroups(groups, [normalise(row) for row in rows])


class Job(NamedTuple):
  """A merge whose inputs have been checked.

  Attributes:
    method: by its name.
    parameters: values of all keys of methods.DEFAULTS.
    sources: the K checkpoints.
    base: what all came from, for methods that need it.
    weights: as typed, or as the method gives them; empty: none.
    is_average: whether the weights say all.
    budget: bytes of memory for parameters.
    groups: of an average, weights that differ between groups.
    specs: of the merged tree.
    needed: bytes of memory for parameters.
    workers: portions that are made at the same time.
  """

  method: str
  parameters: Mapping[str, Any]
  sources: Sequence[Checkpoint]
  base: Checkpoint | None
  weights: Sequence[float]
  is_average: bool
  budget: float
  groups: WeightGroups | None = None
  specs: Mapping[str, LeafSpec] = {}
  needed: int = 0
  workers: int = streaming.WORKERS

  @property
  def size(self) -> int:
    """Bytes of one tree."""
    return sum(spec.nbytes for spec in self.specs.values())

  @property
  def read(self) -> list[Checkpoint]:
    """What is read, the base first and no source of weight zero."""
    used, _ = weighing(self.sources, self.uses_K)
    return [*([self.base] if self.base else []), *used]

  @property
  def uses_K(self) -> list[float]:
    """Above zero for sources that weigh anything anywhere."""
    weights = self.weights or equal_weights(self)
    rows = self.groups.weights_GxK if self.groups else [weights]
    return [max(map(abs, column)) for column in zip(*rows, strict=True)]

  @property
  def recipe(self) -> dict[str, Any]:
    """The parameters that the method uses."""
    used = methods.METHODS[self.method].parameters
    return {key: self.parameters[key] for key in used}


def sized(job: Job, output: epath.PathLike) -> Job:
  """The job with its specs, and as many workers as its memory allows.

  Args:
    job: without them.
    output: where it is to write.

  Raises:
    InputError: a source is damaged, or more memory or disk is needed.
  """
  method = methods.METHODS[job.method]
  leaves = [checkpoint.open_leaves() for checkpoint in job.read]
  job = job._replace(
    specs=streaming.specs(
      leaves, by_layer=method.whole or job.groups is not None
    )
  )

  def needed(workers: int) -> int:
    if method.data:  # a merged tree, and all others where there is room
      all_at_once = job.method not in methods.MEASURED
      return job.size * (len(job.sources) + 1 if all_at_once else 2)
    return streaming.needed_bytes(
      job.specs,
      0 if job.is_average else len(job.read),
      whole=method.whole,
      workers=workers,
    )

  # One alone is copied whatever it holds; measured, it may get no weight.
  summed = len(job.read) > 1 and not method.data
  problems = Problems(_not_finite(job.read) if summed else ())
  problems(lambda: check_room(output, job.size))
  possible = range(streaming.WORKERS, 0, -1)
  workers = next((n for n in possible if needed(n) <= job.budget), 1)
  if needed(workers) > job.budget:
    problems.add(
      f"{human_bytes(needed(1))} of memory are needed for parameters, "
      f"{human_bytes(job.budget)} may be used; see --memory_budget_gb"
    )
  problems.check()
  return job._replace(needed=needed(workers), workers=workers)


def _not_finite(sources: Sequence[Checkpoint]) -> list[str]:
  """Parameters that a step directory's own metadata says are not finite."""
  return [
    f"{source.name}: {name} holds NaN or Inf"
    for source in sources
    for name, leaf in source.metadata.leaves["params"].items()
    if leaf.get("norm", 0.0) is None
  ]


def run_streamed(
  job: Job, output: epath.PathLike, *, overwrite: bool, progress: Progress
) -> None:
  """Merges from storage to storage.

  Args:
    job: of a method that needs no data.
    output: the new directory.
    overwrite: replace an existing one.
    progress: called with a stage, leaves begun, leaves in all and a name.

  Raises:
    InputError: a source is damaged or not finite, or the output cannot be
      written; then nothing is left behind.
  """
  whole = methods.METHODS[job.method].whole
  readings = Readings.of(job.sources)
  of_base = Readings.of([job.base]) if job.base else None
  weights = job.weights or equal_weights(job)
  trees = streaming.stored(readings, job.uses_K)
  work: streaming.Average | streaming.Slices
  work = streaming.Average(
    trees, job.groups.of_portions() if job.groups else lambda _: weights
  )
  if not job.is_average:
    trees, used_weights = weighing(trees, weights)

    def one_leaf(base: Any, ends: Sequence[Any], first_layer: int) -> Any:
      return methods.merge_trees(
        job.method,
        ends,
        used_weights,
        job.parameters,
        base=base,
        first_layer=first_layer,
      )

    base = streaming.stored(of_base, [1.0])[0] if of_base else None
    work = streaming.Slices(one_leaf, base, trees)
  rows = streaming.in_order(
    work, streaming.portions(job.specs, whole=whole), job.workers
  )
  save_merged_rows(
    output,
    job.specs,
    _shown(rows, job.specs, progress),
    readings,
    Recipe(
      job.method,
      weights,
      groups=job.groups.by_name if job.groups else {},
      parameters=job.recipe,
    ),
    lambda: sorted(work.problems),
    base=of_base,
    overwrite=overwrite,
  )


def _shown(
  rows: Iterable[Rows], specs: Mapping[str, LeafSpec], progress: Progress
) -> Iterator[Rows]:
  """The same rows; tells of each leaf that begins."""
  seen: set[str] = set()
  for portion in rows:
    if portion.name not in seen:
      seen.add(portion.name)
      progress("merge", len(seen), len(specs), portion.name)
    yield portion


def equal_weights(job: Job) -> list[float]:
  """Of task vectors all are added whole; of an average each has its share."""
  alone = 1.0 if job.base is not None else 1.0 / len(job.sources)
  return [alone] * len(job.sources)


def plan(job: Job, free: float) -> str:
  """What the job will do, from the metadata alone.

  Args:
    job: with its specs.
    free: bytes of room where it writes.
  """
  read = job.size * len(job.read)
  data = methods.METHODS[job.method].data
  is_step = job.sources[0].layout == DECODER
  kind = "step directories" if is_step else "Hugging Face"
  seconds = (read + job.size) / _BYTES_A_SECOND[kind]
  entries = sum(
    spec.nbytes // spec.dtype.itemsize for spec in job.specs.values()
  )
  where = "streamed in portions"
  if data:
    where = "trees on the devices"
    if job.method in methods.MEASURED:
      where += ", or in host memory or in storage where they do not fit"
  rows = [
    f"{job.method}: {len(job.specs)} tensors of {entries:,} numbers",
    f"read {human_bytes(read)}, write {human_bytes(job.size)} "
    f"({human_bytes(free)} free)",
    f"memory {human_bytes(job.needed)} for parameters, {where}",
    f"about {max(seconds, 1):.0f} s where files are in memory already"
    + (", and the time of measuring" if data else ""),
  ]
  shown = [f"{w:.6f}" for w in job.weights] or [job.method] * len(job.sources)
  for weight, source in zip(shown, job.sources):
    about = source.metadata
    known = f"step {about.step}" if about.step else "step not known"
    rows.append(f"  {weight}  {source.name} ({known})")
  if job.base:
    rows.append(f"  base  {job.base.name}")
  return "\n".join(rows)
