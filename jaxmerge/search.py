"""Finds the weights that merge checkpoints best, and reports what they bring.

  python -m jaxmerge.search --config=configs/search/quickstart.py \\
      --workdir=runs/quickstart [--inputs=A,B,...] [--allow_unrelated] \\
      [--allow_other_tokenizer] [--dry_run]

Without --inputs the workdir's own checkpoints are merged. Type the same
command again to go on where it stopped.
"""

import sys

from jaxmerge.cli import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("search"))

import time
from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import config_dict

from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.checkpoints.compatibility import check_mergeable
from jaxmerge.checkpoints.merged import left_of
from jaxmerge.cli import runner
from jaxmerge.config_reading import read
from jaxmerge.errors import Problems, check
from jaxmerge.evaluation import search_plan, search_study, solvers
from jaxmerge.evaluation.checkpoint_scores import resolution_text
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.evaluator import EVALUATORS
from jaxmerge.evaluation.losses import Losses
from jaxmerge.evaluation.placing import memory, placed
from jaxmerge.evaluation.scored_models import context_of
from jaxmerge.evaluation.search_plan import Places, Prepared
from jaxmerge.evaluation.seen_questions import seen_questions
from jaxmerge.evaluation.tasks.splits import split_tasks
from jaxmerge.evaluation.weight_search import WeightSearch, ended
from jaxmerge.evaluation.weighted_tasks import tasks_evaluator
from jaxmerge.files import user_path
from jaxmerge.parallel.distributed import (
  is_first_process,
  on_every_process,
  on_first_process,
)
from jaxmerge.parallel.exchange import agreed
from jaxmerge.progress import Progress
from jaxmerge.redaction import presentable
from jaxmerge.reporting import search_report
from jaxmerge.reporting.page import check_report_directory
from jaxmerge.reporting.precision import planned

_IF_SEEN = (
  "this search would report on them: leave the input or the task out, or name "
  "its items' clusters as they were then"
)


def search(
  config: config_dict.ConfigDict | SearchConfig,
  workdir: epath.PathLike,
  *,
  inputs: Sequence[str] = (),
  allow_unrelated: bool = False,
  allow_other_tokenizer: bool = False,
  dry_run: bool = False,
  commands: Sequence[str] = (),
  progress: Progress | None = None,
) -> epath.Path:
  """Searches, saves the best merge and writes the report.

  Args:
    config: as configs/search/quickstart.py.
    workdir: of a run; gets search/<name>/{study.journal, merged/<step>} and
      the report, beside them or in `config.report_dir`.
    inputs: checkpoints to merge instead of the workdir's own.
    allow_unrelated: merge checkpoints of different or unknown runs, and score
      on a corpus that has changed since training.
    allow_other_tokenizer: merge checkpoints of different vocabularies.
    dry_run: print the plan and stop after the checks.
    commands: shown in the report as the way to get it again.
    progress: told how far the work is; None: prints it.

  Returns:
    The merged checkpoint's step directory.

  Raises:
    InputError: lists what is wrong with the config, the inputs, the workdir or
      a study of that name.
  """
  progress = progress or runner.TerminalProgress()
  workdir = user_path(workdir)
  config = read(SearchConfig, config)
  began = time.time()
  allowed = {
    "allow_unrelated": allow_unrelated,
    "allow_other_tokenizer": allow_other_tokenizer,
  }
  ready = _prepare(config, workdir, inputs, allowed, progress)

  def look() -> None:
    # Before a text is tokenized: a study of that name may be another's.
    before = search_study.find(ready)
    if dry_run:
      more = {"memory": memory(ready), "precision": planned(ready)}
      more |= search_plan.planned_tasks(ready)
      print(presentable(search_plan.plan(ready, before, more)))

  on_first_process(look)
  if dry_run:
    return ready.output
  losses = search_study.open_losses(ready, progress)
  losses.team.lead(
    lambda: _search(config, ready, losses, began, commands, progress)
  )
  return ready.output


def _search(
  config: SearchConfig,
  ready: Prepared,
  losses: Losses,
  began: float,
  commands: Sequence[str],
  progress: Progress,
) -> None:
  """All that one process of a job does, and leads the others in."""
  study = search_study.open_own(ready, losses.items)
  if ready.goal is not None:
    progress.note("search", ready.evaluator.summary)
    told = resolution_text(losses.alone_K, ready.goal)
    progress.note("search", told)
  limits = Budget(config.max_seconds or None, config.max_tokens or None)
  try:
    best = search_study.run_trials(study, ready, losses, limits, progress)
    search_report.write(study, ready, losses, best, began, commands, progress)
  except KeyboardInterrupt as error:
    done = len(ended(study, config.num_trials))
    error.add_note(
      f"{done} of {config.num_trials} trials are finished; the same command "
      "goes on from there"
    )
    raise


def _prepare(
  config: SearchConfig,
  workdir: epath.Path,
  inputs: Sequence[str],
  allowed: Mapping[str, bool],
  progress: Progress,
) -> Prepared:
  """Checks inputs, places and devices; InputError lists what is wrong."""
  ready = on_every_process(
    lambda: _checked(config, workdir, inputs, allowed, progress)
  )
  if config.solver == solvers.AUTO:
    ready = _as_before(config, ready)
  if ready.search.why:
    name, why = ready.search.method.name, ready.search.why
    progress.note("search", f"config.solver='auto' takes {name}: {why}")
  return placed(ready, config.memory_budget_gb)


def _as_before(config: SearchConfig, ready: Prepared) -> Prepared:
  """By the other method, where that is what made the study of this name."""
  other = solvers.other(ready.search.method.name, config.solver_knobs)
  if other is None:
    return ready
  there = ready._replace(search=ready.search._replace(**other._asdict()))
  goes_on = on_first_process(lambda: search_study.is_of(there))
  return there if agreed(lambda: bool(goes_on)) else ready


def _checked(
  config: SearchConfig,
  workdir: epath.Path,
  inputs: Sequence[str],
  allowed: Mapping[str, bool],
  progress: Progress,
) -> Prepared:
  """Checks all but the devices' memory, in each process."""
  checkpoints, trail = search_plan.open_checkpoints(
    workdir,
    config.checkpoint_steps,
    config.checkpoint_window,
    inputs,
    progress,
  )
  steps = [c.metadata.step for c in checkpoints]
  places = Places.of(config, workdir)
  problems = Problems(search_plan.step_problems(steps, config.baselines))
  if is_first_process():
    problems.extend(search_plan.output_problems(places, checkpoints))
    problems(lambda: check_report_directory(places.report, config.study_name))
  questions = problems(lambda: split_tasks(config.questions.read())) or {}
  problems.check()
  if left := left_of(checkpoints):
    progress.note("search", left)
  check_mergeable(checkpoints, **allowed)
  setting = config.setting(checkpoints[-1].metadata, allowed["allow_unrelated"])
  evaluator = EVALUATORS[config.evaluator]
  goal, sequences = config.goal, config.search_sequences
  if goal is not None:
    report = {n: goal.taken(s, "report") for n, s in questions.items()}
    check(seen_questions(checkpoints, report, _IF_SEEN))
    context = context_of(checkpoints[-1], config.seq_len)
    evaluator = tasks_evaluator(goal, evaluator, questions, context, sequences)
  tokens = evaluator.check(setting)
  search = WeightSearch.of(config, checkpoints, evaluator, places.measurements)
  return Prepared(
    places,
    checkpoints,
    trail,
    search,
    config.baselines,
    evaluator,
    setting,
    sequences,
    config.report_sequences,
    tokens if goal else sequences * tokens,
    goal=goal,
    questions=questions,
  )


def main(argv: Sequence[str]) -> None:
  flags, job = runner.parse(
    argv,
    doc=__doc__ or "",
    configs={"config": ("search", None)},
    strings={
      "workdir": (None, "the run; the same command goes on with its search"),
      "inputs": ("", runner.INPUTS),
    },
    booleans={
      "allow_unrelated": "merge checkpoints of different or unknown runs",
      "allow_other_tokenizer": "merge checkpoints of different vocabularies",
      "dry_run": "check everything, print the plan, stop",
      **runner.RETURN_MEMORY,
    },
  )
  runner.set_up_jax(flags, job)
  with runner.TerminalProgress() as progress:
    search(
      flags.config,
      flags.workdir,
      inputs=flags.inputs,
      allow_unrelated=flags.allow_unrelated,
      allow_other_tokenizer=flags.allow_other_tokenizer,
      dry_run=flags.dry_run,
      commands=[runner.command("search", argv)],
      progress=progress,
    )
