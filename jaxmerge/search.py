"""Finds the weights that merge checkpoints best, and reports what they bring.

  python -m jaxmerge.search --config=configs/search/quickstart.py \\
      --workdir=runs/quickstart [--inputs=A,B,...] [--allow_unrelated] \\
      [--dry_run]

Without --inputs the workdir's own checkpoints are merged. Type the same
command again to go on where it stopped.
"""

import sys

from jaxmerge.cli import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("search"))

import time
from collections.abc import Sequence

from etils import epath
from ml_collections import config_dict

from jaxmerge.cli import flag_values, runner
from jaxmerge.config_reading import read
from jaxmerge.evaluation import search_study
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.search_plan import plan, prepare
from jaxmerge.files import user_path
from jaxmerge.parallel import distributed
from jaxmerge.progress import Progress
from jaxmerge.redaction import presentable
from jaxmerge.reporting import search_output
from jaxmerge.reporting.page import check_report_directory


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
    progress: told how far the work is.

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
  ready = prepare(
    config, workdir, inputs, allow_unrelated, check_report_directory, progress
  )
  # Before a text is tokenized: a study of that name may be another's.
  before = search_study.find(ready)
  if dry_run:
    print(presentable(plan(ready, before)))
    return ready.output
  losses = search_study.open_losses(ready, progress)
  study = search_study.open_own(ready, losses.items)
  with search_study.resumable(study, config.num_trials):
    best = search_study.run_trials(study, ready, losses, progress)
    return search_output.write(
      study, ready, losses, best, began, commands, progress
    )


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
