"""Checks what a search is to merge, and says how long it may take."""

import math
import timeit
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from optuna.study import Study

from jaxmerge.bayesopt.baselines import num_evaluations
from jaxmerge.bayesopt.study.storage import check_storage
from jaxmerge.checkpoints.inputs import (
  Checkpoint,
  no_steps,
  open_steps,
  saved_steps,
  step_path,
)
from jaxmerge.checkpoints.model_inputs import as_model, numbered, open_models
from jaxmerge.checkpoints.outputs import check_output, check_place
from jaxmerge.errors import InputError, Problems
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.evaluator import (
  JVP_PASSES,
  VJP_PASSES,
  EvaluatorRecord,
  Setting,
)
from jaxmerge.evaluation.weight_search import WeightSearch, ended
from jaxmerge.files import check_can_make, human_bytes
from jaxmerge.formats.records.metadata import abstract_params, read_metadata
from jaxmerge.merging.resident import IN_STORAGE, NOWHERE, Placement
from jaxmerge.parallel.rules import named_leaves
from jaxmerge.progress import Progress

# Bytes a second of trees that are read for every merge (docs/results/merge.md).
_STORAGE_BYTES_A_SECOND = 400e6
# Of a matrix product's speed, what a whole forward pass reaches.
_EFFICIENCY = 0.5
_SIZE = 1024


class Places(NamedTuple):
  """Places that a search reads and writes; storage "": a journal of its own."""

  workdir: epath.Path
  study_name: str
  storage: str
  report_dir: str

  @classmethod
  def of(cls, config: SearchConfig, workdir: epath.Path) -> "Places":
    return cls(workdir, config.study_name, config.storage, config.report_dir)

  @property
  def report(self) -> epath.Path:
    """The report's directory, without a name of its own beside the merge."""
    if self.report_dir:
      return self.workdir / self.report_dir
    return self._directory / "report"

  @property
  def study(self) -> str:
    return self.storage or str(self._directory / "study.journal")

  @property
  def merged(self) -> epath.Path:
    """The directory of merged checkpoints, by step."""
    return self._directory / "merged"

  @property
  def _directory(self) -> epath.Path:
    return self.workdir / "search" / self.study_name


class Prepared(NamedTuple):
  """A search whose inputs and places have been checked.

  Attributes:
    checkpoints: to merge, by step.
    trail: of the run (the inputs, where they were given), by step.
    setting: to open the evaluator in.
    tokens: that a trial scores, about.
    place: of the trees; NOWHERE until it is chosen.
  """

  places: Places
  checkpoints: Sequence[Checkpoint]
  trail: Sequence[Checkpoint]
  search: WeightSearch
  baselines: Sequence[str]
  evaluator: EvaluatorRecord
  setting: Setting
  search_sequences: int
  report_sequences: int
  tokens: int
  place: Placement = NOWHERE

  @property
  def output(self) -> epath.Path:
    """The merged checkpoint's step directory."""
    return self.places.merged / str(self.search.domain.steps[-1])


def open_checkpoints(
  workdir: epath.Path,
  steps: Sequence[int],
  window: int,
  inputs: Sequence[str],
  progress: Progress,
) -> tuple[list[Checkpoint], list[Checkpoint]]:
  """Opens the checkpoints to merge and the whole trail, both by step.

  Those to merge are of some steps of the run, its last ones, or the inputs.
  A damaged checkpoint that is not to be merged is left out of the trail, and so
  is a temporary one, which only a stop has made, unless it is named.
  """
  if inputs:
    chosen = numbered(open_models(inputs))
    trail = chosen
    if steps:
      given = f"config.checkpoint_steps {steps} give way to --inputs"
      progress.note("search", given)
  else:
    there = saved_steps(workdir)
    saved = [s for s in there if s in steps or not _is_temporary(workdir, s)]
    if not steps and len(saved) < window > 2:
      raise InputError(
        f"{workdir} has {len(saved)} checkpoints, not the {window} of "
        f"config.checkpoint_window: {', '.join(map(str, saved))}"
      )
    wanted = sorted(set(steps)) or saved[-window:]
    if missing := [step for step in wanted if step not in saved]:
      raise InputError(
        f"{no_steps(workdir, missing, saved)}; config.checkpoint_steps=() "
        "takes the last config.checkpoint_window ones, two if not said"
      )
    chosen = [as_model(c) for c in open_steps(workdir, wanted)]
    trail = []
    for step in saved:
      try:
        trail += open_steps(workdir, [step])
      except InputError as damage:
        progress.note("search", f"left out: {damage.problems[0]}")
  chosen.sort(key=lambda c: c.metadata.step)
  return chosen, trail


def _is_temporary(workdir: epath.Path, step: int) -> bool:
  try:
    return read_metadata(step_path(workdir, step)).temporary
  except InputError:  # whoever merges it says why it cannot be read
    return False


def step_problems(steps: Sequence[int], baselines: Sequence[str]) -> list[str]:
  """Says why checkpoints of such steps cannot be searched."""
  problems = []
  if len(steps) < 2:
    problems.append(f"a search merges two checkpoints or more, got {steps}")
  if len(set(steps)) < len(steps):
    problems.append(f"two inputs are of the same step: {steps}")
  if len(steps) == 2 and "cma_es" in baselines:
    problems.append(
      "config.baselines: cma_es is for three checkpoints or more (of a pair "
      "it would be a random search)"
    )
  return problems


def output_problems(
  places: Places, checkpoints: Sequence[Checkpoint] = ()
) -> list[str]:
  """Says why merge, report or study must not be where they would be.

  There are no checkpoints yet before a run.
  """
  read = [checkpoint.path for checkpoint in checkpoints]
  problems = Problems()
  problems(lambda: check_can_make(places.merged))
  is_blocked = bool(problems)
  if checkpoints:
    path = places.merged / str(checkpoints[-1].metadata.step)
    problems(lambda: check_output(path, overwrite=True, inputs=read))
  problems(lambda: check_place(places.report / "report.html", inputs=read))
  if "://" not in places.study:
    problems(lambda: check_place(places.study, inputs=read))
  if places.storage or not is_blocked:
    problems(lambda: check_storage(places.study))
  return problems.found


def plan(ready: Prepared, before: Study | None) -> str:
  """Says what a search will do, a line a fact."""
  search, place, bounds = ready.search, ready.place, ready.search.domain.bounds
  leaves = named_leaves(abstract_params(ready.checkpoints[0].metadata)).values()
  parameters = sum(math.prod(x.shape) for x in leaves)
  size = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
  count, groups = len(ready.checkpoints), len(search.domain.groups.names_G)
  num_trials = search.num_trials
  done = len(ended(before, num_trials)) if before else 0
  left = num_trials - done
  seconds = _trial_seconds(ready, parameters, size)
  seconds += search.method.asking_seconds(
    groups * count, groups, num_trials, search.knobs
  )
  title = search.method.title
  evaluations = [
    f"{num_trials} by {title}, the first {len(search.starts)} given",
    *(_baseline(name, count, num_trials) for name in ready.baselines),
  ]
  rows = {
    "merge": ", ".join(c.name for c in ready.checkpoints),
    "weights": f"{groups} x {count}, the last from {bounds.alpha:g} to "
    f"{1 + bounds.beta:g}",
    "evaluations": "; ".join(evaluations),
    "study": f"{done} of {num_trials} trials are finished",
    "time": f"about {_rounded(seconds)} s a trial x {left} = "
    f"{_rounded(seconds * left)} s, compiling and baselines apart",
    "read": human_bytes(size * count),
    "trees": place.where,
    "memory": f"{human_bytes(place.needed)} for parameters",
    "write": f"{ready.output}",
    "report": f"{ready.places.report}",
  }
  return "\n".join(f"{name:>16}: {value}" for name, value in rows.items())


def _baseline(name: str, num_weights: int, num_trials: int) -> str:
  """For example "12 by grid", and where that is no search."""
  found = num_evaluations(name, num_weights, num_trials)
  told = f"{found} by {name}"
  if name == "grid" and found == num_weights > 2:
    told += " (each checkpoint alone: it says little here)"
  return told


def _rounded(seconds: float) -> str:
  return f"{seconds:.2f}" if seconds < 10 else f"{seconds:,.0f}"


def _trial_seconds(
  ready: Prepared, parameters: int, tree_bytes: float
) -> float:
  """Seconds to merge once and to score the merge, within a factor of two.

  A forward pass takes two operations a parameter and token.
  """
  flops, bytes_a_second = _speeds()
  if ready.place.where == IN_STORAGE:
    bytes_a_second = _STORAGE_BYTES_A_SECOND
  count, passes = len(ready.checkpoints), 1
  if ready.search.use_gradients:
    passes = JVP_PASSES if count == 2 else VJP_PASSES
  scoring = passes * 2 * parameters * ready.tokens / (_EFFICIENCY * flops)
  return scoring + count * tree_bytes / bytes_a_second


def _speeds() -> tuple[float, float]:
  """Operations and bytes a second of all devices of this process."""
  devices = len(jax.local_devices())
  if jax.default_backend() == "cpu":
    devices = 1  # they share the host's cores
  matrix = jnp.asarray(np.ones((_SIZE, _SIZE), np.float32))
  product = _fastest(jax.jit(jnp.dot), matrix, matrix)
  add = _fastest(jax.jit(jnp.add), matrix, matrix)
  return devices * 2 * _SIZE**3 / product, devices * 3 * matrix.nbytes / add


def _fastest(function: jax.stages.Wrapped, *arrays: jax.Array) -> float:
  """Seconds of the fastest of a few calls, after one that compiles."""
  call = lambda: jax.block_until_ready(function(*arrays))
  return min(timeit.repeat(call, number=1, repeat=6)[1:])
