"""Scores checkpoints on text and on questions that they have not seen.

  python -m jaxmerge.evaluate --config=configs/evaluate/quickstart.py \\
      --inputs=A,B,... [--output=DIR] [--allow_seen] [--dry_run]

Prints each input's score on each of config.tasks (if nothing else is said, the
held-out loss in nats/token and bits/byte) and the difference to the first input
with its paired standard error. Inputs may be of several sizes and tokenizers;
a workdir stands for all its checkpoints.
"""

import sys

from jaxmerge.cli import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("evaluate"))

import contextlib
import os
from collections.abc import Sequence

from etils import epath
from ml_collections import config_dict

from jaxmerge import locks
from jaxmerge.checkpoints.compatibility import check_comparable
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.merged import identity
from jaxmerge.checkpoints.outputs import check_place
from jaxmerge.cli import runner
from jaxmerge.config_reading import read
from jaxmerge.errors import Problems
from jaxmerge.evaluation import task_scores
from jaxmerge.evaluation.config import EvaluateConfig
from jaxmerge.evaluation.evaluate_plan import plan
from jaxmerge.evaluation.evaluator import DEFAULT_EVALUATOR
from jaxmerge.evaluation.scored_models import Models
from jaxmerge.evaluation.seen_questions import seen_questions
from jaxmerge.evaluation.task_scores import Questions
from jaxmerge.evaluation.task_tables import Evaluation, Table, compared
from jaxmerge.evaluation.tasks.task import hash_of
from jaxmerge.evaluation.trajectory import open_inputs, trajectories
from jaxmerge.files import check_can_make, user_path
from jaxmerge.parallel.distributed import (
  is_first_process,
  on_every_process,
  on_first_process,
)
from jaxmerge.parallel.exchange import check_same
from jaxmerge.progress import Progress
from jaxmerge.redaction import presentable
from jaxmerge.reporting import evaluation_files
from jaxmerge.reporting.evaluation_text import tables_text, trajectories_text

_IF_SEEN = (
  "the search's report has that on the others; accept it with --allow_seen"
)


def evaluate(
  config: config_dict.ConfigDict | EvaluateConfig,
  inputs: Sequence[str],
  *,
  output: epath.PathLike = "",
  allow_seen: bool = False,
  dry_run: bool = False,
  progress: Progress | None = None,
) -> list[Evaluation]:
  """Scores each input on the same items and prints a table for each task.

  Held-out text is scored on the same sequences by inputs of one tokenizer, on
  the same whole documents by those of several.

  Args:
    config: as configs/evaluate/quickstart.py.
    inputs: step directories, `workdir@step`, `workdir@step:ema`, workdirs
      (each of their steps) or Hugging Face directories.
    output: a directory that gets evaluation.json, evaluation.npz and, of
      several steps of a run, evaluation.png; "" writes nothing.
    allow_seen: score merges on what they were searched on, too.
    dry_run: print the plan and stop after the checks.
    progress: told how far the work is; None: prints it.

  Returns:
    A row for each input in the first table, then in the second, and so on.

  Raises:
    InputError: lists what is wrong with the config, the tasks, the inputs or
      the output.
  """
  progress = progress or runner.TerminalProgress()
  settings, checkpoints, questions = on_every_process(
    lambda: _checked(config, inputs, output, allow_seen, progress)
  )
  check_same(
    lambda: {
      **{c.name: identity(c) for c in checkpoints},
      **{name: hash_of(items) for name, items in questions.items()},
    }
  )
  models = Models.of(settings, checkpoints)
  if dry_run:
    on_first_process(
      lambda: print(presentable(plan(settings, models, questions)))
    )
    return []
  with contextlib.ExitStack() as stack:
    if output:
      on_first_process(lambda: stack.enter_context(_lock(output)))
    found, whole = task_scores.scores(
      settings,
      models,
      questions,
      progress,
      allow_seen=allow_seen,
      named=inputs,
    )
    tables = compared([c.name for c in whole], found)
    on_first_process(lambda: _tell(tables, whole, settings.split, output))
  return [row for table in tables for row in table.rows]


def _checked(
  config: config_dict.ConfigDict | EvaluateConfig,
  inputs: Sequence[str],
  output: epath.PathLike,
  allow_seen: bool,
  progress: Progress,
) -> tuple[EvaluateConfig, list[Checkpoint], Questions]:
  """Checks all that can be before anything is scored, in each process."""
  problems = Problems()
  settings = problems(lambda: read(EvaluateConfig, config))
  questions: Questions = {}
  if settings is not None:
    questions = problems(settings.questions.read) or {}
  checkpoints = problems(lambda: open_inputs(inputs, progress)) or []
  if not allow_seen:
    problems += seen_questions(checkpoints, questions, _IF_SEEN)
  if output and is_first_process():
    folder, paths = user_path(output), [c.path for c in checkpoints]
    file = folder / evaluation_files.FILE
    problems(lambda: check_place(file, inputs=paths))
    problems(lambda: check_can_make(folder))
    problems += evaluation_files.place_problems(folder)
  problems.check()
  assert settings is not None
  is_per_byte = settings.evaluator == DEFAULT_EVALUATOR
  check_comparable(
    checkpoints,
    allow_other_tokenizer=is_per_byte or not settings.has_held_out,
  )
  return settings, checkpoints, questions


def _lock(output: epath.PathLike) -> contextlib.AbstractContextManager[None]:
  folder = user_path(output)
  # In a directory that is there, which may be all that can be written to.
  inside = folder / evaluation_files.FILE if folder.exists() else folder
  return locks.exclusive(inside, f"the output {output}")


def _tell(
  tables: Sequence[Table],
  checkpoints: Sequence[Checkpoint],
  split: str,
  output: epath.PathLike,
) -> None:
  """Prints the tables and what trajectories show, and writes them."""
  print(presentable(tables_text(tables, split)))
  found = trajectories(checkpoints)
  if told := trajectories_text(found, tables):
    print("\n" + presentable(told))
  if output:
    evaluation_files.write(output, split, tables, found)


def main(argv: Sequence[str]) -> None:
  flags, job = runner.parse(
    argv,
    doc=__doc__ or "",
    configs={"config": ("evaluate", None)},
    strings={
      "inputs": (None, f"{runner.INPUTS}; a workdir is all its steps"),
      "output": ("", "a directory that gets evaluation.json and its items"),
    },
    booleans={
      "allow_seen": "score merges on what they were searched on",
      "dry_run": "check everything, print the plan, stop",
      **runner.RETURN_MEMORY,
    },
  )
  runner.set_up_jax(flags, job)
  written = epath.Path(flags.output or os.devnull) / evaluation_files.FILE
  with runner.whole_output(written), runner.TerminalProgress() as progress:
    evaluate(
      flags.config,
      flags.inputs,
      output=flags.output,
      allow_seen=flags.allow_seen,
      dry_run=flags.dry_run,
      progress=progress,
    )
