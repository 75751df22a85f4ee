"""Finds the weights that merge checkpoints best, and reports what they bring.

  python -m jaxmerge.search --config=configs/search/quickstart.py \\
      --workdir=runs/quickstart [--inputs=A,B,...] [--allow_unrelated] \\
      [--dry_run]

Without --inputs the workdir's own checkpoints are merged. Type the same
command again to go on where it stopped.
"""

import math
import re
import shlex
import sys
from collections.abc import Sequence

from etils import epath
from ml_collections import config_dict
from optuna.study import Study
from optuna.trial import FrozenTrial

from jaxmerge import runner
from jaxmerge.bayesopt.sampler import GPHedgeSampler
from jaxmerge.bayesopt.study import open_study, run_study
from jaxmerge.checkpoints import trajectory
from jaxmerge.checkpoints.merged import identity, save_merged
from jaxmerge.checkpoints.metadata import abstract_params
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.errors import InputError, check
from jaxmerge.evaluation import objective
from jaxmerge.evaluation.held_out_splits import Scorer, open_scorer
from jaxmerge.files import check_can_make, human_bytes, make_directory
from jaxmerge.merging.average import weighted_average
from jaxmerge.parallel import distributed
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import named_leaves, shardings
from jaxmerge.reporting.comparison import Comparison
from jaxmerge.reporting.search_report import SearchFacts, write_search_report
from jaxmerge.training.loop import Progress

SCHEMA: runner.Schema = {
  "name": str,
  "steps": tuple,
  "alpha": float,
  "num_trials": int,
  "seed": int,
  "acquisitions": tuple,
  "search_sequences": int,
  "report_sequences": int,
  "batch_size": int,
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
  workdir = epath.Path(workdir)
  check_config(config)
  distributed.check_single_process("search")
  merged_of, trail = _checkpoints(config, workdir, inputs, progress)
  trajectory.check_mergeable(merged_of, allow_unrelated=allow_unrelated)
  mesh = make_mesh(**config.mesh)
  where = shardings(abstract_params(merged_of[-1].metadata), mesh)
  check_can_make(workdir / "search" / config.name)
  if dry_run:
    print(_plan(config, workdir, merged_of))
    return _merged_path(config, workdir, merged_of)
  scorer = open_scorer(
    merged_of[-1].metadata,
    mesh,
    batch_size=config.batch_size,
    allow_unrelated=allow_unrelated,
    progress=lambda text: progress("data", 0, 0, text),
  )
  search_split = scorer.on("search", config.search_sequences)
  report_split = scorer.on("report", config.report_sequences)
  trees = [restore_params(c.path, where) for c in merged_of]
  steps = [c.metadata.step for c in merged_of]
  folder = make_directory(workdir / "search" / config.name)
  study = _open_study(config, folder, merged_of, scorer)
  _run(
    study, config, objective.MergedLoss(trees, search_split), steps, progress
  )
  trials = objective.finished(study.trials, config.num_trials)
  best = objective.best_trial(trials)
  weights_K = [objective.weights_of(best)[step] for step in steps]
  path = _merged_path(config, workdir, merged_of)
  save_merged(
    path,
    weighted_average(trees, weights_K),
    merged_of,
    weights_K,
    method="gp_hedge",
    overwrite=True,
  )
  write_search_report(
    workdir / config.report,
    Comparison(steps, trees, search_split, report_split),
    SearchFacts(
      workdir=workdir,
      trail=trail,
      where=where,
      trials=trials,
      best=best,
      weights_K=weights_K,
      alpha=config.alpha,
      merged=path,
      commands=commands,
    ),
    progress,
  )
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
    chosen = trajectory.open_inputs(inputs)
    trail = chosen
  else:
    saved = trajectory.saved_steps(workdir)
    steps = sorted(set(config.steps)) or saved[-2:]
    chosen = trajectory.open_steps(workdir, steps)
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
  if config.num_trials < len(chosen):
    problems.append(
      f"config.num_trials must be at least {len(chosen)}, one for each "
      f"checkpoint alone; got {config.num_trials}"
    )
  check(problems)
  return chosen, trail


def _problems(config: config_dict.ConfigDict) -> list[str]:
  problems = [
    f"config.{key} must be positive, got {config[key]}"
    for key in ("search_sequences", "report_sequences", "batch_size")
    if config[key] < 1
  ]
  if not 0 <= config.alpha < 1:
    problems.append(f"config.alpha must be in [0, 1), got {config.alpha}")
  for key in ("name", "report"):
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", config[key]):
      problems.append(
        f"config.{key} must be a plain file name, got {config[key]!r}"
      )
  if config.report in ("checkpoints", "search", "tensorboard"):
    problems.append(f"config.report must not be the run's own {config.report}")
  known = ("ei", "pi", "ucb")
  if not config.acquisitions or set(config.acquisitions) - set(known):
    problems.append(
      f"config.acquisitions must be some of {known}, got {config.acquisitions}"
    )
  return problems


def _open_study(
  config: config_dict.ConfigDict,
  folder: epath.Path,
  checkpoints: Sequence[Checkpoint],
  scorer: Scorer,
) -> Study:
  return open_study(
    folder / "study.journal",
    config.name,
    sampler=GPHedgeSampler(
      seed=config.seed,
      acquisitions=tuple(config.acquisitions),
      simplex=objective.weight_names(len(checkpoints)),
    ),
    fingerprint={
      "seed": config.seed,
      "alpha": config.alpha,
      "acquisitions": list(config.acquisitions),
      "search_sequences": config.search_sequences,
      "corpus": scorer.corpus.fingerprint,
      "inputs": [identity(checkpoint) for checkpoint in checkpoints],
    },
    num_trials=config.num_trials,
  )


def _run(
  study: Study,
  config: config_dict.ConfigDict,
  merged: objective.MergedLoss,
  steps: Sequence[int],
  progress: Progress,
) -> None:
  """Runs what is left of the study's budget."""

  def show(trial: FrozenTrial) -> None:
    best = objective.best_trial(
      objective.finished(study.trials, config.num_trials)
    )
    weights = ", ".join(
      f"{step}: {w:.3f}" for step, w in objective.weights_of(best).items()
    )
    note = f"best {best.value:.4f} at {weights}"
    progress("search", trial.number + 1, config.num_trials, note)

  run_study(
    study,
    objective.make_objective(merged, config.alpha, steps),
    num_trials=config.num_trials,
    on_trial=show,
  )


def _merged_path(
  config: config_dict.ConfigDict,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
) -> epath.Path:
  step = checkpoints[-1].metadata.step
  return workdir / "search" / config.name / "merged" / str(step)


def _plan(
  config: config_dict.ConfigDict,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
) -> str:
  size = sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in named_leaves(abstract_params(checkpoints[0].metadata)).values()
  )
  count = len(checkpoints)
  rows = (
    ("merge", ", ".join(c.name for c in checkpoints)),
    ("evaluations", f"{config.num_trials} by GP-Hedge, as many by the grid"),
    ("read", human_bytes(size * count)),
    ("on the devices", human_bytes(size * (count + 1))),
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
      "inputs": ("", "step directories or workdir@step, comma-separated"),
    },
    booleans={
      "allow_unrelated": "merge checkpoints of different runs or tokenizers",
      "dry_run": "check everything, print the plan, stop",
    },
  )
  runner.set_up_jax()
  search(
    flags.config,
    flags.workdir,
    inputs=runner.split_list(flags.inputs),
    allow_unrelated=flags.allow_unrelated,
    dry_run=flags.dry_run,
    commands=[shlex.join(["python", "-m", "jaxmerge.search", *argv])],
    progress=runner.TerminalProgress(),
  )


if __name__ == "__main__":
  sys.exit(runner.run("search", lambda: main(sys.argv[1:])))
