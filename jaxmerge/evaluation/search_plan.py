"""Checks what a search is to merge, and says how long it may take."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath
from optuna.study import Study

from jaxmerge.bayesopt.study.storage import check_storage
from jaxmerge.checkpoints.inputs import (
  Checkpoint,
  check_mergeable,
  open_steps,
  saved_steps,
)
from jaxmerge.checkpoints.model_inputs import as_model, numbered, open_models
from jaxmerge.checkpoints.outputs import check_output, check_place
from jaxmerge.errors import InputError, Problems, check
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.cost import trial_seconds
from jaxmerge.evaluation.evaluator import (
  EVALUATORS,
  EvaluatorRecord,
  Setting,
)
from jaxmerge.evaluation.objective import Domain
from jaxmerge.evaluation.search_method import SEARCH_METHODS
from jaxmerge.evaluation.weight_search import WeightSearch, ended
from jaxmerge.files import check_can_make, human_bytes
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.merging.groups import layer_groups, one_group
from jaxmerge.merging.resident import Placement, choose_placement
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import named_leaves, shardings
from jaxmerge.progress import Progress
from jaxmerge.simplex.bounds import Bounds

CheckReport = Callable[[epath.Path], None]


class Prepared(NamedTuple):
  """A search whose inputs and places have been checked.

  Attributes:
    config, workdir: as for prepare.
    checkpoints: to merge, by step.
    trail: of the run (the inputs, where they were given), by step.
    search: decides which weights are tried.
    evaluator: of the merges.
    setting: to open it in.
    where: shardings of a parameter tree.
    place: of the trees.
    tokens: that a trial scores, about.
  """

  config: SearchConfig
  workdir: epath.Path
  checkpoints: Sequence[Checkpoint]
  trail: Sequence[Checkpoint]
  search: WeightSearch
  evaluator: EvaluatorRecord
  setting: Setting
  where: Any
  place: Placement
  tokens: int

  @property
  def output(self) -> epath.Path:
    """The merged checkpoint's step directory."""
    return _merged_path(self.config, self.workdir, self.checkpoints)

  @property
  def report(self) -> epath.Path:
    """The report's directory."""
    return self.workdir / self.config.report_dir


def prepare(
  config: SearchConfig,
  workdir: epath.Path,
  inputs: Sequence[str],
  allow_unrelated: bool,
  check_report: CheckReport,
  progress: Progress,
) -> Prepared:
  """Checks inputs, places and devices; InputError lists what is wrong.

  Args:
    config, workdir, inputs, allow_unrelated: as for search.
    check_report: refuses a directory that a report must not be written to.
    progress: told of checkpoints that are left out.
  """
  checkpoints, trail = _checkpoints(
    config, workdir, inputs, check_report, progress
  )
  check_mergeable(checkpoints, allow_unrelated=allow_unrelated)
  mesh = make_mesh(**vars(config.mesh))
  abstract = abstract_params(checkpoints[-1].metadata)
  where = shardings(abstract, mesh)
  bands = config.layer_groups
  groups = layer_groups(abstract, int(bands)) if bands else one_group(abstract)
  search = WeightSearch(
    Domain(
      [c.metadata.step for c in checkpoints],
      groups,
      Bounds(config.alpha, config.beta),
    ),
    SEARCH_METHODS[config.search_method],
    config.method_knobs,
    config.seed,
    config.num_trials,
  )
  place = choose_placement(
    checkpoints,
    where,
    # A gradient is as much again in float32, and a tangent or a spare tree.
    merged_trees=5 if search.use_gradients else 2,
    memory_budget_gb=config.memory_budget_gb,
  )
  evaluator = EVALUATORS[config.evaluator]
  setting = Setting.of(checkpoints[-1].metadata, mesh, config, allow_unrelated)
  return Prepared(
    config,
    workdir,
    checkpoints,
    trail,
    search,
    evaluator,
    setting,
    where,
    place,
    config.search_sequences * evaluator.check(setting),
  )


def study_address(config: SearchConfig, workdir: epath.Path) -> str:
  own = workdir / "search" / config.study_name / "study.journal"
  return config.storage or str(own)


def _merged_path(
  config: SearchConfig, workdir: epath.Path, checkpoints: Sequence[Checkpoint]
) -> epath.Path:
  step = checkpoints[-1].metadata.step
  return workdir / "search" / config.study_name / "merged" / str(step)


def _checkpoints(
  config: SearchConfig,
  workdir: epath.Path,
  inputs: Sequence[str],
  check_report: CheckReport,
  progress: Progress,
) -> tuple[list[Checkpoint], list[Checkpoint]]:
  """The checkpoints to merge and the whole trail, both by step.

  A damaged checkpoint that is not to be merged is left out of the trail.
  """
  if inputs:
    chosen = numbered(open_models(inputs))
    trail = chosen
  else:
    saved = saved_steps(workdir)
    steps = sorted(set(config.checkpoint_steps)) or saved[-2:]
    chosen = [as_model(c) for c in open_steps(workdir, steps)]
    trail = []
    for step in saved:
      try:
        trail += open_steps(workdir, [step])
      except InputError as damage:
        progress.note("search", f"left out: {damage.problems[0]}")
  chosen.sort(key=lambda c: c.metadata.step)
  steps = [c.metadata.step for c in chosen]
  problems = []
  if len(chosen) < 2:
    problems.append(f"a search merges two checkpoints or more, got {steps}")
  if len(set(steps)) < len(steps):
    problems.append(f"two inputs are of the same step: {steps}")
  if len(chosen) == 2 and "cma_es" in config.baselines:
    problems.append(
      "config.baselines: cma_es is for three checkpoints or more (of a pair "
      "it would be a random search)"
    )
  if inputs and config.checkpoint_steps:
    given = f"config.checkpoint_steps {config.checkpoint_steps}"
    progress.note("search", f"{given} give way to --inputs")
  check(problems + output_problems(config, workdir, chosen, check_report))
  return chosen, trail


def output_problems(
  config: SearchConfig,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
  check_report: CheckReport,
) -> list[str]:
  """Says why merge, report or study must not be where they would be.

  There are no checkpoints yet before a run; for the rest see prepare.
  """
  read = [checkpoint.path for checkpoint in checkpoints]
  report = workdir / config.report_dir
  study = study_address(config, workdir)
  problems = Problems()
  merged = workdir / "search" / config.study_name / "merged"
  problems(lambda: check_can_make(merged))
  is_blocked = bool(problems)
  if checkpoints:
    path = _merged_path(config, workdir, checkpoints)
    problems(lambda: check_output(path, overwrite=True, inputs=read))
  problems(lambda: check_place(report / "report.html", inputs=read))
  problems(lambda: check_report(report))
  if "://" not in study:
    problems(lambda: check_place(study, inputs=read))
  if config.storage or not is_blocked:
    problems(lambda: check_storage(study))
  return problems.found


def plan(ready: Prepared, before: Study | None) -> str:
  """Says what a search will do, a line a fact."""
  config, search, place = ready.config, ready.search, ready.place
  leaves = named_leaves(abstract_params(ready.checkpoints[0].metadata)).values()
  size = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
  count, groups = len(ready.checkpoints), len(search.domain.groups.names_G)
  done = len(ended(before, config.num_trials)) if before else 0
  left = config.num_trials - done
  scoring = trial_seconds(
    parameters=sum(math.prod(x.shape) for x in leaves),
    tree_bytes=size,
    count=count,
    tokens=ready.tokens,
    use_gradients=search.use_gradients,
    where=place.where,
  )
  seconds = scoring + search.method.asking_seconds(
    groups * count, groups, search.num_trials, search.knobs
  )
  methods = [
    f"{search.method.title}, the first {len(search.starts)} given",
    *config.baselines,
  ]
  rows = {
    "merge": ", ".join(c.name for c in ready.checkpoints),
    "weights": f"{groups} x {count}, the last from {config.alpha:g} to "
    f"{1 + config.beta:g}",
    "evaluations": "; ".join(f"{config.num_trials} by {m}" for m in methods),
    "study": f"{done} of {config.num_trials} trials are finished",
    "time": f"about {_rounded(seconds)} s a trial x {left} = "
    f"{_rounded(seconds * left)} s, compiling and baselines apart",
    "read": human_bytes(size * count),
    "trees": place.where,
    "memory": f"{human_bytes(place.needed)} for parameters",
    "write": f"{ready.output}",
    "report": f"{ready.report}",
  }
  return "\n".join(f"{name:>16}: {value}" for name, value in rows.items())


def _rounded(seconds: float) -> str:
  return f"{seconds:.2f}" if seconds < 10 else f"{seconds:,.0f}"
