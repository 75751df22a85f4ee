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

import time
from collections.abc import Sequence

from etils import epath
from ml_collections import config_dict
from optuna.study import Study

from jaxmerge import flag_values, runner
from jaxmerge.bayesopt.reach import Reach
from jaxmerge.bayesopt.storage import check_storage
from jaxmerge.checkpoints import trajectory
from jaxmerge.checkpoints.merged import Recipe, save_merged
from jaxmerge.checkpoints.metadata import abstract_params
from jaxmerge.checkpoints.outputs import check_output, check_place
from jaxmerge.checkpoints.sources import as_model, numbered, open_models
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.config_reading import read
from jaxmerge.errors import InputError, Problems, check
from jaxmerge.evaluation import weight_search
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.held_out_splits import (
  check_batch,
  open_scorer,
  text_of,
)
from jaxmerge.evaluation.objective import Domain, MergedLoss
from jaxmerge.files import (
  check_can_make,
  make_directory,
  user_path,
)
from jaxmerge.locks import exclusive
from jaxmerge.merging.groups import layer_groups, one_group
from jaxmerge.merging.resident import choose_place, open_trees
from jaxmerge.parallel import distributed
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
from jaxmerge.reporting.page import check_report_directory
from jaxmerge.reporting.rows import Comparison
from jaxmerge.reporting.search_report import (
  FinishedSearch,
  write_search_report,
)
from jaxmerge.search_plan import merged_path, plan, seconds_a_trial
from jaxmerge.search_study import (
  find_own_study,
  open_own_study,
  run_trials,
  study_address,
)
from jaxmerge.shown import presentable
from jaxmerge.training.loop import Progress

# When a searcher wrote which merge and report, in the study's attributes.
_WRITTEN = "written"


def search(
  config: config_dict.ConfigDict | SearchConfig,
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
  config = read(SearchConfig, config)
  distributed.check_single_process("search")
  began = time.time()
  merged_of, trail = _checkpoints(config, workdir, inputs, progress)
  trajectory.check_mergeable(merged_of, allow_unrelated=allow_unrelated)
  mesh = make_mesh(**vars(config.mesh))
  abstract = abstract_params(merged_of[-1].metadata)
  where = shardings(abstract, mesh)
  domain = Domain(
    steps=[c.metadata.step for c in merged_of],
    groups=(
      layer_groups(abstract, int(config.layer_groups))
      if config.layer_groups
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
    data=config.data,
    seq_len=config.seq_len,
    allow_unrelated=allow_unrelated,
  )
  # Before a text is tokenized: a study of that name may be another's.
  before = find_own_study(config, workdir, merged_of, domain)
  if dry_run:
    tokens = config.search_sequences * text.seq_len
    seconds = seconds_a_trial(config, abstract, domain, place, tokens)
    text_of_plan = plan(
      config, workdir, merged_of, domain, place, seconds, before
    )
    print(presentable(text_of_plan))
    return merged_path(config, workdir, merged_of)
  scorer = open_scorer(
    merged_of[-1].metadata,
    mesh,
    batch_size=config.batch_size,
    data=config.data,
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
  study = open_own_study(config, workdir, merged_of, domain, scorer)
  try:
    best = run_trials(study, config, merged, domain, progress)
    trials = weight_search.ended(study, config.num_trials)
    found = FinishedSearch(
      workdir=workdir,
      comparison=Comparison(
        domain, trees, trail, where, search_split, report_split
      ),
      trials=trials,
      told=weight_search.told(study, domain, trials, config.use_gradients),
      best=best,
      baselines=tuple(config.baselines),
      seed=config.seed,
      merged=merged_path(config, workdir, merged_of),
      commands=commands,
      corpus=config.data.source or merged_of[-1].metadata.data["source"],
    )
    return _write(config, study, merged_of, merged, found, began, progress)
  except KeyboardInterrupt as error:
    done = len(weight_search.ended(study, config.num_trials))
    error.add_note(
      f"{done} of {config.num_trials} trials are finished; the same command "
      "goes on from there"
    )
    raise


def _write(
  config: SearchConfig,
  study: Study,
  merged_of: Sequence[Checkpoint],
  merged: MergedLoss,
  found: FinishedSearch,
  began: float,
  progress: Progress,
) -> epath.Path:
  """Saves the best merge and the report, unless another searcher has."""
  workdir, path, best = found.workdir, found.merged, found.best
  domain = found.comparison.domain
  weights_GxK = domain.weights(best.params)
  folder = make_directory(workdir / "search" / config.study_name)
  result = {
    "trials": len(found.trials),
    "chosen": best.number,
    "report": config.report_dir,
    "baselines": list(config.baselines),
  }
  with exclusive(folder / "writer", f"the merge in {folder}", wait=True):
    at, written = study.user_attrs.get(_WRITTEN, (0.0, None))
    is_here = path.exists() and (workdir / config.report_dir).exists()
    if is_here and at > began and written == result:
      progress("search", 0, 0, f"another searcher has written {path}")
      return path
    groups = dict(zip(domain.groups.names_G, weights_GxK))
    save_merged(
      path,
      merged.merge(weights_GxK),
      merged_of,
      Recipe(
        "gp_hedge",
        domain.mean_weights(best.params),
        groups=groups if config.layer_groups else {},
      ),
      overwrite=True,
    )
    write_search_report(workdir / config.report_dir, found, progress)
    study.set_user_attr(_WRITTEN, (time.time(), result))
  return path


def _checkpoints(
  config: SearchConfig,
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
    steps = sorted(set(config.checkpoint_steps)) or saved[-2:]
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
  if inputs and config.checkpoint_steps:
    given = f"config.checkpoint_steps {config.checkpoint_steps}"
    progress("search", 0, 0, f"{given} give way to --inputs")
  check(problems + output_problems(config, workdir, chosen))
  return chosen, trail


def output_problems(
  config: SearchConfig,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
) -> list[str]:
  """Why the merge, the report or the study must not be where they would be.

  Args:
    config: of the search.
    workdir: of the run.
    checkpoints: to be merged; none where they are not there yet.
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
  problems(lambda: check_report_directory(report))
  if "://" not in study:
    problems(lambda: check_place(study, inputs=read))
  if config.storage or not is_blocked:
    problems(lambda: check_storage(study))
  return problems.found


def main(argv: Sequence[str]) -> None:
  flags = runner.parse(
    argv,
    doc=__doc__ or "",
    configs={"config": ("search", None)},
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
