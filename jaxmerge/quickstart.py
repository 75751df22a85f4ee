"""Pretrains, searches, merges and reports: the main job in one command.

  python -m jaxmerge.quickstart [--workdir=runs/quickstart]

Type the same command again to go on where it stopped. --pretrain, --search and
--evaluate name other config files, and --pretrain.key=value overrides a key.
"""

import sys

from jaxmerge.cli import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("quickstart"))

from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from ml_collections import config_dict

from jaxmerge import evaluate, pretrain, search
from jaxmerge.cli import runner
from jaxmerge.config_reading import read
from jaxmerge.errors import InputError, Problems, check
from jaxmerge.evaluation.config import EvaluateConfig, SearchConfig
from jaxmerge.evaluation.search_plan import Places, output_problems
from jaxmerge.evaluation.tasks.splits import split_tasks
from jaxmerge.files import user_path
from jaxmerge.parallel.distributed import check_single_process
from jaxmerge.progress import Progress
from jaxmerge.reporting.page import check_report_directory

CONFIGS = {
  verb: f"configs/{verb}/quickstart.py"
  for verb in ("pretrain", "search", "evaluate")
}


def quickstart(
  workdir: epath.PathLike,
  configs: dict[str, config_dict.ConfigDict],
  *,
  commands: Sequence[str] = (),
  progress: Progress | None = None,
) -> epath.Path:
  """Makes the three steps of the README and returns the merged checkpoint.

  Args:
    workdir: of the run; the report is in its search/<study_name>/report/.
    configs: one for each of "pretrain", "search" and "evaluate".
    commands: shown in the report as the way to get it again.
    progress: told how far the work is; None: prints it.

  Raises:
    InputError: lists what is wrong with any of the configs, before training.
  """
  check_single_process("quickstart")
  workdir = user_path(workdir)
  check(_problems(configs, workdir))
  pretrain.train(configs["pretrain"], workdir, progress=progress)
  merged = search.search(
    configs["search"], workdir, commands=commands, progress=progress
  )
  try:
    evaluate.evaluate(
      configs["evaluate"],
      [f"{workdir}@{merged.name}", str(merged)],
      progress=progress,
    )
  except KeyboardInterrupt as error:
    error.add_note("the merge and its report are written, but not yet scored")
    raise
  return merged


def _problems(
  configs: dict[str, config_dict.ConfigDict], workdir: epath.Path
) -> list[str]:
  """Everything that can be known before the minutes of training."""
  problems: list[str] = []
  found: dict[str, Any] = {}
  checks: dict[str, Callable[[Any], Any]] = {
    "pretrain": pretrain.check_config,
    "search": lambda config: read(SearchConfig, config),
    "evaluate": lambda config: read(EvaluateConfig, config),
  }
  for name, examine in checks.items():
    try:
      found[name] = examine(configs[name])
    except InputError as error:
      problems += [f"{name}: {problem}" for problem in error.problems]
  if not problems:
    (run, _), asked = found["pretrain"], found["search"]
    saved = {*range(0, run.num_steps, run.save_every), run.num_steps} - {0}
    of_search = Problems(
      f"config.checkpoint_steps has {step}, which the run will not save"
      for step in asked.checkpoint_steps
      if step not in saved
    )
    places = Places.of(asked, workdir)
    of_search.extend(output_problems(places))
    of_search(lambda: check_report_directory(places.report, asked.study_name))
    of_search(lambda: split_tasks(asked.questions.read()))
    problems = [f"search: {problem}" for problem in of_search.found]
    of_evaluate = Problems()
    of_evaluate(found["evaluate"].questions.read)
    problems += [f"evaluate: {problem}" for problem in of_evaluate.found]
  return problems


def main(argv: Sequence[str]) -> None:
  flags, job = runner.parse(
    argv,
    doc=__doc__ or "",
    configs={verb: (verb, file) for verb, file in CONFIGS.items()},
    strings={"workdir": ("runs/quickstart", "where the run lives")},
    booleans=runner.RETURN_MEMORY,
  )
  runner.set_up_jax(flags, job)
  with runner.TerminalProgress() as progress:
    quickstart(
      flags.workdir,
      {verb: getattr(flags, verb) for verb in CONFIGS},
      commands=[runner.command("quickstart", argv)],
      progress=progress,
    )
