"""Checks what a search is to merge, and says how long it may take."""

import math
import types
from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
from jaxmerge.evaluation.checkpoint_scores import expected_resolution
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.evaluator import EvaluatorRecord, Setting
from jaxmerge.evaluation.search_method import Task
from jaxmerge.evaluation.speeds import (
  STORAGE_BYTES_A_SECOND,
  rounded,
  speeds,
)
from jaxmerge.evaluation.task_config import Goal
from jaxmerge.evaluation.tasks.splits import Splits
from jaxmerge.evaluation.weight_search import WeightSearch, ended
from jaxmerge.files import check_can_make, human_bytes
from jaxmerge.formats.records.metadata import abstract_params, read_metadata
from jaxmerge.merging.resident import (
  IN_STORAGE,
  NOWHERE,
  ON_DEVICES,
  Placement,
)
from jaxmerge.parallel.rules import named_leaves
from jaxmerge.progress import Progress


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
  def measurements(self) -> epath.Path:
    """The directory of what trials have measured, where it is large."""
    return self._directory / "measurements"

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
    has_room: there, beside them, for derivatives by the weights.
    goal: of a search of tasks; None of one of held-out text alone.
    questions: the splits of its tasks of questions, by their texts.
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
  has_room: bool = True
  goal: Goal | None = None
  questions: Mapping[str, Splits] = types.MappingProxyType({})

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


def plan(ready: Prepared, before: Study | None, more: Mapping[str, str]) -> str:
  """Says what a search will do, and more behind it, a line a fact."""
  search, place, bounds = ready.search, ready.place, ready.search.domain.bounds
  leaves = named_leaves(abstract_params(ready.checkpoints[0].metadata)).values()
  parameters = sum(math.prod(x.shape) for x in leaves)
  size = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
  count, groups = len(ready.checkpoints), len(search.domain.groups.names_G)
  num_trials = search.num_trials
  done = len(ended(before, num_trials)) if before else 0
  left = num_trials - done
  on_devices = place.where == ON_DEVICES
  task = Task(count, groups, ready.search_sequences, num_trials, on_devices)
  expense = search.method.expense(task, search.knobs)
  each = expense.passes / num_trials
  seconds = _trial_seconds(ready, parameters, size, each)
  seconds += search.method.asking_seconds(
    groups * count, groups, num_trials, search.knobs
  )
  passes = math.ceil(expense.passes)
  told = f"{num_trials} by {search.method.title}, the first "
  told += f"{len(search.starts)} given"
  evaluations = [
    ", ".join(filter(None, [told, expense.told])),
    *(_baseline(name, count, passes) for name in ready.baselines),
  ]
  if bounds.negative and ready.baselines:
    evaluations.append("baselines keep to weights from 0 to 1")
  rows = {
    "solver": search.method.name + (search.why and f": {search.why}"),
    "merge": ", ".join(c.name for c in ready.checkpoints),
    "weights": f"{groups} x {count}, "
    f"{'each' if bounds.negative else 'the last'} {bounds.reach}",
    "evaluations": "; ".join(evaluations),
    "study": f"{done} of {num_trials} trials are finished",
    "time": f"about {rounded(seconds)} s a trial x {left} = "
    f"{rounded(seconds * left)} s, compiling and baselines apart",
    "read": human_bytes(size * count),
    "trees": place.where,
    "write": f"{ready.output}",
    "report": f"{ready.places.report}",
    **more,
  }
  return "\n".join(f"{name:>16}: {value}" for name, value in rows.items())


def planned_tasks(ready: Prepared) -> dict[str, str]:
  """Says what a search of tasks seeks, on what; nothing of any other."""
  goal = ready.goal
  if goal is None:
    return {}
  counts = {
    split: [len(goal.taken(s, split)) for s in ready.questions.values()]
    for split in ("search", "report")
  }
  told = ", ".join(f"{sum(n):,} to {split} on" for split, n in counts.items())
  rows = {"objective": ready.evaluator.summary}
  if goal.constraint:
    rows["constraint"] = goal.constraint
  rows["items"] = f"{told}, of {len(ready.questions)} tasks of questions"
  expected = expected_resolution(goal, counts["search"])
  rows["resolution"] = expected or "told once the checkpoints are scored"
  return rows


def _baseline(name: str, num_weights: int, num_trials: int) -> str:
  """For example "12 by grid", and where that is no search."""
  found = num_evaluations(name, num_weights, num_trials)
  told = f"{found} by {name}"
  if name == "grid" and found == num_weights > 2:
    told += " (each checkpoint alone: it says little here)"
  return told


def _trial_seconds(
  ready: Prepared, parameters: int, tree_bytes: float, passes: float
) -> float:
  """Seconds to merge once and to score the merge, within a factor of two.

  A forward pass takes two operations a parameter and token.
  """
  found = speeds()
  bytes_a_second = found.memory
  if ready.place.where == IN_STORAGE:
    bytes_a_second = STORAGE_BYTES_A_SECOND
  count = len(ready.checkpoints)
  scoring = passes * found.forward_seconds(parameters, ready.tokens)
  return scoring + count * tree_bytes / bytes_a_second
