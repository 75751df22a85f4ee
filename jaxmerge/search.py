"""Finds the weights that merge checkpoints best, and reports what they bring.

  python -m jaxmerge.search --config=configs/search/quickstart.py \\
      --workdir=runs/quickstart [--inputs=A,B,...] [--allow_unrelated] \\
      [--dry_run]

Without --inputs the workdir's own checkpoints are merged. Type the same
command again to go on where it stopped.
"""

import sys

from jaxmerge import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("search"))

import math
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import config_dict
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jaxmerge import flag_values, runner
from jaxmerge.bayesopt.acquisition import NAMES
from jaxmerge.bayesopt.controls import CONTROLS
from jaxmerge.bayesopt.journal import one_at_a_time
from jaxmerge.bayesopt.limits import Limits
from jaxmerge.bayesopt.reach import Reach
from jaxmerge.bayesopt.storage import address_problems, check_storage
from jaxmerge.bayesopt.study import FAILURE, find_study
from jaxmerge.bayesopt.surrogate import expected_seconds
from jaxmerge.checkpoints import trajectory
from jaxmerge.checkpoints.merged import Recipe, identity, save_merged
from jaxmerge.checkpoints.metadata import abstract_params
from jaxmerge.checkpoints.outputs import check_output, check_place
from jaxmerge.checkpoints.sources import as_model, numbered, open_models
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.data import sections
from jaxmerge.data.heldout import WINDOWS
from jaxmerge.errors import InputError, Problems, check
from jaxmerge.evaluation import weight_search
from jaxmerge.evaluation.cost import trial_seconds
from jaxmerge.evaluation.held_out_splits import (
  Scorer,
  check_batch,
  open_scorer,
  text_of,
)
from jaxmerge.evaluation.objective import Domain, MergedLoss, weights_of
from jaxmerge.files import (
  check_can_make,
  human_bytes,
  make_directory,
  user_path,
)
from jaxmerge.merging import coefficients
from jaxmerge.merging.groups import layer_groups, one_group
from jaxmerge.merging.trees import Place, choose_place, open_trees
from jaxmerge.parallel import distributed
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import named_leaves, shardings
from jaxmerge.reporting import table
from jaxmerge.reporting.comparison import Comparison
from jaxmerge.reporting.report_directory import check_report_directory
from jaxmerge.reporting.search_report import SearchFacts, write_search_report
from jaxmerge.shown import presentable
from jaxmerge.training.loop import Progress

# When a searcher wrote which merge and report, in the study's attributes.
_WRITTEN = "written"

SCHEMA: runner.Schema = {
  "name": str,
  "steps": tuple[int, ...],
  "alpha": float,
  "beta": float,
  "bands": int,
  "num_trials": int,
  "max_seconds": float,
  "max_tokens": int,
  "seed": int,
  "acquisitions": tuple[str, ...],
  "starts": tuple[str, ...],
  "use_gradients": bool,
  "early_stop": bool,
  "baselines": tuple[str, ...],
  "storage": str,
  "search_sequences": int,
  "report_sequences": int,
  "batch_size": int,
  "seq_len": int,
  "data": dict(sections.OTHER_CORPUS),
  "memory_budget_gb": float,
  "report": str,
  "mesh": {"data": int, "fsdp": int, "tensor": int},
}


def search(
  config: config_dict.ConfigDict,
  workdir: epath.PathLike,
  *,
  inputs: Sequence[str] = (),
  allow_unrelated: bool = False,
  dry_run: bool = False,
  commands: Sequence[str] = (),
  progress: Progress,
) -> epath.Path:
  """Searches, saves the best merge and writes the report.

  Args:
    config: as configs/search/quickstart.py.
    workdir: of a run; gets search/<name>/{study.journal, merged/<step>} and
      the report's directory.
    inputs: checkpoints to merge instead of the workdir's own.
    allow_unrelated: merge checkpoints of different runs or tokenizers, and
      score on a corpus that has changed since training.
    dry_run: print the plan and stop after the checks.
    commands: shown in the report as the way to get it again.
    progress: called with a stage, evaluations done, in all and a note.

  Returns:
    The merged checkpoint's step directory.

  Raises:
    InputError: lists what is wrong with the config, the inputs, the workdir or
      a study of that name.
  """
  workdir = user_path(workdir)
  check_config(config)
  distributed.check_single_process("search")
  began = time.time()
  merged_of, trail = _checkpoints(config, workdir, inputs, progress)
  trajectory.check_mergeable(merged_of, allow_unrelated=allow_unrelated)
  mesh = make_mesh(**config.mesh)
  abstract = abstract_params(merged_of[-1].metadata)
  where = shardings(abstract, mesh)
  domain = Domain(
    steps=[c.metadata.step for c in merged_of],
    groups=(
      layer_groups(abstract, config.bands)
      if config.bands
      else one_group(abstract)
    ),
    reach=Reach(config.alpha, config.beta),
  )
  place = choose_place(
    merged_of,
    where,
    # A gradient is as much again in float32, and a tangent or a spare tree.
    merged_trees=5 if config.use_gradients else 2,
    memory_budget_gb=config.memory_budget_gb,
  )
  check_batch(config.batch_size, mesh)
  text = text_of(
    merged_of[-1].metadata,
    settings=sections.other_corpus(config.data),
    seq_len=config.seq_len,
    allow_unrelated=allow_unrelated,
  )
  # Before a text is tokenized: a study of that name may be another's.
  before = _find_study(config, workdir, merged_of, domain)
  if dry_run:
    tokens = config.search_sequences * text.seq_len
    seconds = _seconds_a_trial(config, abstract, domain, place, tokens)
    plan = _plan(config, workdir, merged_of, domain, place, seconds, before)
    print(presentable(plan))
    return _merged_path(config, workdir, merged_of)
  scorer = open_scorer(
    merged_of[-1].metadata,
    mesh,
    batch_size=config.batch_size,
    settings=sections.other_corpus(config.data),
    seq_len=config.seq_len,
    allow_unrelated=allow_unrelated,
    progress=lambda text: progress("data", 0, 0, text),
  )
  search_split = scorer.on("search", config.search_sequences)
  report_split = scorer.on("report", config.report_sequences)
  trees = open_trees(merged_of, where, place.where)
  merged = MergedLoss(trees, search_split, domain.groups)
  if config.use_gradients:
    merged.check_differentiable(domain.steps)
  study = _open_study(config, workdir, merged_of, domain, scorer)
  try:
    best = _run(study, config, merged, domain, progress)
    return _write(
      config,
      _Found(
        workdir,
        merged_of,
        trail,
        where,
        domain,
        merged,
        Comparison(domain.steps, trees, search_split, report_split),
        study,
        best,
      ),
      began,
      commands,
      progress,
    )
  except KeyboardInterrupt as error:
    done = len(weight_search.ended(study, config.num_trials))
    error.add_note(
      f"{done} of {config.num_trials} trials are finished; the same command "
      "goes on from there"
    )
    raise


class _Found(NamedTuple):
  """A search that has ended."""

  workdir: epath.Path
  merged_of: list[Checkpoint]
  trail: list[Checkpoint]
  where: Any
  domain: Domain
  merged: MergedLoss
  comparison: Comparison
  study: Study
  best: FrozenTrial


def _write(
  config: config_dict.ConfigDict,
  found: _Found,
  began: float,
  commands: Sequence[str],
  progress: Progress,
) -> epath.Path:
  """Saves the best merge and the report, unless another searcher has."""
  workdir, study, domain, best = (
    found.workdir,
    found.study,
    found.domain,
    found.best,
  )
  path = _merged_path(config, workdir, found.merged_of)
  weights_GxK = domain.weights(best.params)
  trials = weight_search.ended(study, config.num_trials)
  folder = make_directory(workdir / "search" / config.name)
  result = {
    "trials": len(trials),
    "chosen": best.number,
    "report": config.report,
    "baselines": list(config.baselines),
  }
  with one_at_a_time(folder / "writer"):
    at, written = study.user_attrs.get(_WRITTEN, (0.0, None))
    is_here = path.exists() and (workdir / config.report).exists()
    if is_here and at > began and written == result:
      progress("search", 0, 0, f"another searcher has written {path}")
      return path
    groups = dict(zip(domain.groups.names_G, weights_GxK))
    save_merged(
      path,
      found.merged.merge(weights_GxK),
      found.merged_of,
      Recipe(
        "gp_hedge",
        domain.mean_weights(best.params),
        groups=groups if config.bands else {},
      ),
      overwrite=True,
    )
    write_search_report(
      workdir / config.report,
      found.comparison,
      SearchFacts(
        workdir=workdir,
        trail=found.trail,
        where=found.where,
        trials=trials,
        told=weight_search.told(study, domain, trials, config.use_gradients),
        best=best,
        domain=domain,
        merge=found.merged.merge,
        baselines=tuple(config.baselines),
        seed=config.seed,
        merged=path,
        commands=commands,
        corpus=config.data.source
        or found.merged_of[-1].metadata.data["source"],
      ),
      progress,
    )
    study.set_user_attr(_WRITTEN, (time.time(), result))
  return path


def check_config(config: config_dict.ConfigDict) -> None:
  """Refuses what is wrong with a config whatever the inputs."""
  runner.check_config(config, SCHEMA)
  check(_problems(config))


def _checkpoints(
  config: config_dict.ConfigDict,
  workdir: epath.Path,
  inputs: Sequence[str],
  progress: Progress,
) -> tuple[list[Checkpoint], list[Checkpoint]]:
  """The checkpoints to merge and the whole trail, both by step.

  A damaged checkpoint that is not to be merged is left out of the trail.
  """
  if inputs:
    chosen = numbered(open_models(inputs))
    trail = chosen
  else:
    saved = trajectory.saved_steps(workdir)
    steps = sorted(set(config.steps)) or saved[-2:]
    chosen = [as_model(c) for c in trajectory.open_steps(workdir, steps)]
    trail = []
    for step in saved:
      try:
        trail += trajectory.open_steps(workdir, [step])
      except InputError as damage:
        progress("search", 0, 0, f"left out: {damage.problems[0]}")
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
  if inputs and config.steps:
    progress(
      "search", 0, 0, f"config.steps {config.steps} give way to --inputs"
    )
  check(problems + _output_problems(config, workdir, chosen))
  return chosen, trail


def _output_problems(
  config: config_dict.ConfigDict,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
) -> list[str]:
  """Why the merge, the report or the study must not be where they would be."""
  read = [checkpoint.path for checkpoint in checkpoints]
  path = _merged_path(config, workdir, checkpoints)
  report = workdir / config.report
  study = _study_address(config, workdir)
  problems = Problems()
  problems(lambda: check_can_make(workdir / "search" / config.name))
  is_blocked = bool(problems.found)
  problems(lambda: check_output(path, overwrite=True, inputs=read))
  problems(lambda: check_place(report / "report.html", inputs=read))
  problems(lambda: check_report_directory(report))
  if "://" not in study:
    problems(lambda: check_place(study, inputs=read))
  if config.storage or not is_blocked:
    problems(lambda: check_storage(study))
  return problems.found


def _problems(config: config_dict.ConfigDict) -> list[str]:
  problems = [
    f"config.{key} must be positive, got {config[key]}"
    for key in ("search_sequences", "report_sequences", "batch_size")
    if config[key] < 1
  ]
  problems += [
    f"config.{key} must be 0 (no limit) or positive, got {config[key]}"
    for key in ("max_seconds", "max_tokens", "bands")
    if config[key] < 0
  ]
  problems += sections.other_corpus_problems(config.data)
  problems += address_problems(config.storage)
  for key in ("seq_len", "memory_budget_gb"):
    if not (math.isfinite(config[key]) and config[key] >= 0):
      problems.append(f"config.{key} must be at least 0, got {config[key]}")
  if config.num_trials < 2:
    problems.append(
      f"config.num_trials must be at least 2, got {config.num_trials}"
    )
  problems += [
    f"config.{problem}"
    for problem in Reach(config.alpha, config.beta).problems()
  ]
  for key in ("name", "report"):
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", config[key]):
      problems.append(
        f"config.{key} must be a plain file name, got {config[key]!r}"
      )
  if config.report in ("checkpoints", "search", "tensorboard"):
    problems.append(f"config.report must not be the run's own {config.report}")
  for key, known in (
    ("acquisitions", NAMES),
    ("starts", coefficients.STARTS),
    ("baselines", tuple(CONTROLS)),
  ):
    chosen = [value for value in config[key] if value in known]
    if len(chosen) < len(config[key]) or len(set(chosen)) < len(chosen):
      problems.append(
        f"config.{key} must be different ones of {known}, got {config[key]}"
      )
  if not config.acquisitions:
    problems.append("config.acquisitions must not be empty")
  if not 0 <= config.seed < 2**32:
    problems.append(f"config.seed must be in [0, 2**32), got {config.seed}")
  return problems


def _fingerprint(
  config: config_dict.ConfigDict, checkpoints: Sequence[Checkpoint]
) -> dict[str, Any]:
  """What tells a search from others, but for its weights and its corpus."""
  return {
    "early_stop": config.early_stop,
    "held_out": WINDOWS,
    "search_sequences": config.search_sequences,
    **({"seq_len": config.seq_len} if config.seq_len else {}),
    "inputs": [identity(checkpoint) for checkpoint in checkpoints],
  }


def _find_study(
  config: config_dict.ConfigDict,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
  domain: Domain,
) -> Study | None:
  """The study to go on with, if there is one; InputError for another's."""
  weights = weight_search.fingerprint_of(
    domain,
    seed=config.seed,
    acquisitions=tuple(config.acquisitions),
    use_gradients=config.use_gradients,
    starts=tuple(config.starts),
  )
  return find_study(
    _study_address(config, workdir),
    config.name,
    fingerprint={**weights, **_fingerprint(config, checkpoints)},
    described=_described(workdir, checkpoints),
  )


def _open_study(
  config: config_dict.ConfigDict,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
  domain: Domain,
  scorer: Scorer,
) -> Study:
  source = config.data.source or checkpoints[-1].metadata.data["source"]
  corpus = scorer.corpus.fingerprint
  return weight_search.open_weight_study(
    _study_address(config, workdir),
    config.name,
    domain,
    seed=config.seed,
    acquisitions=tuple(config.acquisitions),
    use_gradients=config.use_gradients,
    starts=tuple(config.starts),
    num_trials=config.num_trials,
    fingerprint={**_fingerprint(config, checkpoints), "corpus": corpus},
    described={
      **_described(workdir, checkpoints),
      "corpus": f"{source}, {corpus[:12]}",
    },
  )


def _described(
  workdir: epath.Path, checkpoints: Sequence[Checkpoint]
) -> dict[str, str]:
  """What the hashes of the inputs stand for."""
  inputs = ", ".join(checkpoint.name for checkpoint in checkpoints)
  if {c.path.parent for c in checkpoints} == {workdir / "checkpoints"}:
    inputs = "steps " + ", ".join(str(c.metadata.step) for c in checkpoints)
  return {"inputs": inputs}


def _study_address(config: config_dict.ConfigDict, workdir: epath.Path) -> str:
  own = workdir / "search" / config.name / "study.journal"
  return config.storage or str(own)


def _run(
  study: Study,
  config: config_dict.ConfigDict,
  merged: MergedLoss,
  domain: Domain,
  progress: Progress,
) -> FrozenTrial:
  """Runs what is left of the study's budget; the trial that was chosen."""

  def show(trial: FrozenTrial) -> None:
    done = len(weight_search.ended(study, config.num_trials))
    best = weight_search.lowest(study, config.num_trials)
    note = "no trial has a loss yet"
    if best is not None:
      weights = weights_of(best)
      note = f"best {best.value:.4f} at {table.all_weights(weights)}"
    if trial.state == TrialState.FAIL:
      note = f"trial {trial.number} failed: {trial.user_attrs[FAILURE]}; {note}"
    progress("search", done, config.num_trials, note)

  ending = weight_search.run_weight_study(
    study,
    merged,
    domain,
    num_trials=config.num_trials,
    limits=Limits(config.max_seconds or None, config.max_tokens or None),
    use_gradients=config.use_gradients,
    early_stop=config.early_stop,
    on_trial=show,
  )
  if ending != "done":
    left = config.num_trials - len(
      weight_search.ended(study, config.num_trials)
    )
    progress(
      "search",
      0,
      0,
      f"config.max_{ending} is used up with {left} trials left; type the same "
      "command with a larger one to go on",
    )
  best = weight_search.choose(
    study, domain, config.num_trials, config.use_gradients
  )
  if best is None:
    raise InputError(
      f"no trial of the search {config.name!r} has a loss; each one's reason "
      "is its user attribute 'failure' in the study"
    )
  return best


def _merged_path(
  config: config_dict.ConfigDict,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
) -> epath.Path:
  step = checkpoints[-1].metadata.step
  return workdir / "search" / config.name / "merged" / str(step)


def _num_starts(config: config_dict.ConfigDict, domain: Domain) -> int:
  points = weight_search.unit_starts(
    config.starts, domain, config.num_trials, config.use_gradients
  )
  return len(points)


def _seconds_a_trial(
  config: config_dict.ConfigDict,
  abstract: Any,
  domain: Domain,
  place: Place,
  tokens: int,
) -> float:
  leaves = named_leaves(abstract).values()
  count, groups = len(domain.steps), len(domain.groups.names_G)
  scoring = trial_seconds(
    parameters=sum(math.prod(leaf.shape) for leaf in leaves),
    tree_bytes=_tree_bytes(abstract),
    count=count,
    tokens=tokens,
    use_gradients=config.use_gradients,
    where=place.where,
  )
  return scoring + expected_seconds(
    groups * count, groups, config.num_trials, config.use_gradients
  )


def _rounded(seconds: float) -> str:
  return f"{seconds:.2f}" if seconds < 10 else f"{seconds:,.0f}"


def _tree_bytes(abstract: Any) -> int:
  leaves = named_leaves(abstract).values()
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _plan(
  config: config_dict.ConfigDict,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
  domain: Domain,
  place: Place,
  seconds: float,
  before: Study | None,
) -> str:
  size = _tree_bytes(abstract_params(checkpoints[0].metadata))
  count = len(checkpoints)
  done = 0
  if before is not None:
    done = len(weight_search.ended(before, config.num_trials))
  left = config.num_trials - done
  rows = (
    ("merge", ", ".join(c.name for c in checkpoints)),
    (
      "weights",
      f"{len(domain.groups.names_G)} x {count}, the last from "
      f"{config.alpha:g} to {1 + config.beta:g}",
    ),
    (
      "evaluations",
      f"{config.num_trials} by GP-Hedge, the first "
      f"{_num_starts(config, domain)} given"
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
    ("trees", place.where),
    ("memory", f"{human_bytes(place.needed)} for parameters"),
    ("write", f"{_merged_path(config, workdir, checkpoints)}"),
    ("report", f"{workdir / config.report}"),
  )
  return "\n".join(f"{name:>16}: {value}" for name, value in rows)


def main(argv: Sequence[str]) -> None:
  flags = runner.parse(
    argv,
    doc=__doc__ or "",
    configs={"config": None},
    strings={
      "workdir": (None, "the run; the same command goes on with its search"),
      "inputs": (
        "",
        "step directories, workdir@step or Hugging Face folders, "
        "comma-separated",
      ),
    },
    booleans={
      "allow_unrelated": "merge checkpoints of different runs or tokenizers",
      "dry_run": "check everything, print the plan, stop",
    },
    read={"inputs": flag_values.split_list},
  )
  runner.set_up_jax()
  search(
    flags.config,
    flags.workdir,
    inputs=flags.inputs,
    allow_unrelated=flags.allow_unrelated,
    dry_run=flags.dry_run,
    commands=[runner.command("search", argv)],
    progress=runner.TerminalProgress(),
  )
