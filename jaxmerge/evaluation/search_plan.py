"""What a search is to merge, whether it may, and how long it may take."""

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
from jaxmerge.evaluation import weight_search
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.cost import trial_seconds
from jaxmerge.evaluation.evaluator import (
  EVALUATORS,
  EvaluatorRecord,
  Setting,
)
from jaxmerge.evaluation.objective import Domain
from jaxmerge.evaluation.search_method import SEARCH_METHODS
from jaxmerge.evaluation.weight_search import WeightSearch
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
    checkpoints: to merge, by step.
    trail: of the run (the inputs, where they were given), by step.
    search: what decides which weights are tried.
    evaluator: of the merges.
    setting: to open it in.
    where: shardings of a parameter tree.
    place: of the trees.
    tokens: that a trial scores, about.
    output: the merged checkpoint's step directory.
  """

  checkpoints: Sequence[Checkpoint]
  trail: Sequence[Checkpoint]
  search: WeightSearch
  evaluator: EvaluatorRecord
  setting: Setting
  where: Any
  place: Placement
  tokens: int
  output: epath.Path


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
    config: of the search.
    workdir: of the run.
    inputs: checkpoints to merge instead of the run's own.
    allow_unrelated: as for search.
    check_report: refuses a directory that a report must not be written to.
    progress: told what is left out.
  """
  checkpoints, trail = _checkpoints(
    config, workdir, inputs, check_report, progress
  )
  check_mergeable(checkpoints, allow_unrelated=allow_unrelated)
  mesh = make_mesh(**vars(config.mesh))
  abstract = abstract_params(checkpoints[-1].metadata)
  where = shardings(abstract, mesh)
  domain = Domain(
    steps=[c.metadata.step for c in checkpoints],
    groups=(
      layer_groups(abstract, int(config.layer_groups))
      if config.layer_groups
      else one_group(abstract)
    ),
    bounds=Bounds(config.alpha, config.beta),
  )
  search = WeightSearch(
    domain,
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
  setting = Setting(
    checkpoints[-1].metadata,
    mesh,
    config.batch_size,
    config.evaluator_knobs,
    data=config.data,
    seq_len=config.seq_len,
    allow_unrelated=allow_unrelated,
  )
  tokens = config.search_sequences * evaluator.check(setting)
  output = merged_path(config, workdir, checkpoints)
  return Prepared(
    checkpoints, trail, search, evaluator, setting, where, place, tokens, output
  )


def study_address(config: SearchConfig, workdir: epath.Path) -> str:
  own = workdir / "search" / config.study_name / "study.journal"
  return config.storage or str(own)


def merged_path(
  config: SearchConfig,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
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
  """Why the merge, the report or the study must not be where they would be.

  Args:
    config: of the search.
    workdir: of the run.
    checkpoints: to be merged; none where they are not there yet.
    check_report: as for prepare.
  """
  read = [checkpoint.path for checkpoint in checkpoints]
  report = workdir / config.report_dir
  study = study_address(config, workdir)
  problems = Problems()
  folder = workdir / "search" / config.study_name
  problems(lambda: check_can_make(folder / "merged"))
  is_blocked = bool(problems.found)
  if checkpoints:
    path = merged_path(config, workdir, checkpoints)
    problems(lambda: check_output(path, overwrite=True, inputs=read))
  problems(lambda: check_place(report / "report.html", inputs=read))
  problems(lambda: check_report(report))
  if "://" not in study:
    problems(lambda: check_place(study, inputs=read))
  if config.storage or not is_blocked:
    problems(lambda: check_storage(study))
  return problems.found


def _seconds_a_trial(ready: Prepared) -> float:
  """Expected seconds of a trial: to merge, to score and to suggest."""
  abstract = abstract_params(ready.checkpoints[-1].metadata)
  search = ready.search
  count, groups = len(ready.checkpoints), len(search.domain.groups.names_G)
  scoring = trial_seconds(
    parameters=sum(math.prod(x.shape) for x in named_leaves(abstract).values()),
    tree_bytes=_tree_bytes(abstract),
    count=count,
    tokens=ready.tokens,
    use_gradients=search.use_gradients,
    where=ready.place.where,
  )
  return scoring + search.method.asking_seconds(
    groups * count, groups, search.num_trials, search.knobs
  )


def _rounded(seconds: float) -> str:
  return f"{seconds:.2f}" if seconds < 10 else f"{seconds:,.0f}"


def _tree_bytes(abstract: Any) -> int:
  leaves = named_leaves(abstract).values()
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def plan(
  config: SearchConfig,
  workdir: epath.Path,
  ready: Prepared,
  before: Study | None,
) -> str:
  """What a search will do, a line a fact."""
  search = ready.search
  size = _tree_bytes(abstract_params(ready.checkpoints[0].metadata))
  count = len(ready.checkpoints)
  done = 0
  if before is not None:
    done = len(weight_search.ended(before, config.num_trials))
  left = config.num_trials - done
  seconds = _seconds_a_trial(ready)
  rows = (
    ("merge", ", ".join(c.name for c in ready.checkpoints)),
    (
      "weights",
      f"{len(search.domain.groups.names_G)} x {count}, the last from "
      f"{config.alpha:g} to {1 + config.beta:g}",
    ),
    (
      "evaluations",
      f"{config.num_trials} by {search.method.title}, the first "
      f"{len(search.starts)} given"
      + "".join(
        f"; {config.num_trials} by {name}" for name in config.baselines
      ),
    ),
    ("study", f"{done} of {config.num_trials} trials are finished"),
    (
      "time",
      f"about {_rounded(seconds)} s a trial x {left} = "
      f"{_rounded(seconds * left)} s, compiling and baselines apart",
    ),
    ("read", human_bytes(size * count)),
    ("trees", ready.place.where),
    ("memory", f"{human_bytes(ready.place.needed)} for parameters"),
    ("write", f"{ready.output}"),
    ("report", f"{workdir / config.report_dir}"),
  )
  return "\n".join(f"{name:>16}: {value}" for name, value in rows)
