"""Scores checkpoints on text that they have not been trained on.

  python -m jaxmerge.evaluate --config=configs/evaluate/quickstart.py \\
      --inputs=A,B,... [--output=DIR]

Prints nats/token and bits/byte, and the difference to the first input with its
paired standard error.
"""

import sys

from jaxmerge import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("evaluate"))

import contextlib
import dataclasses
import os
from collections.abc import Sequence

from etils import epath
from ml_collections import config_dict

from jaxmerge import flag_values, locks, runner
from jaxmerge.checkpoints import trajectory
from jaxmerge.checkpoints.metadata import abstract_params
from jaxmerge.checkpoints.outputs import check_place
from jaxmerge.checkpoints.sources import load_params, open_models
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.config_reading import read
from jaxmerge.errors import Problems
from jaxmerge.evaluation import paired
from jaxmerge.evaluation.config import EvaluateConfig
from jaxmerge.evaluation.held_out_splits import open_scorer
from jaxmerge.evaluation.heldout_loss import Score
from jaxmerge.files import check_can_make, make_directory, user_path, write_json
from jaxmerge.merging.resident import choose_place
from jaxmerge.parallel import distributed
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
from jaxmerge.reading import read_file, read_json
from jaxmerge.shown import presentable
from jaxmerge.training.loop import Progress

_FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One input's score; differences are to the first input, nats/token."""

  name: str
  nats_per_token: float
  stderr: float
  bits_per_byte: float
  delta: float
  delta_stderr: float


def evaluate(
  config: config_dict.ConfigDict | EvaluateConfig,
  inputs: Sequence[str],
  *,
  output: epath.PathLike = "",
  progress: Progress,
) -> list[Evaluation]:
  """Scores each input on the same sequences and prints a table.

  Args:
    config: as configs/evaluate/quickstart.py.
    inputs: step directories, `workdir@step` or Hugging Face directories.
    output: a directory that gets evaluation.json; "" writes nothing.
    progress: called with a stage, inputs scored, inputs in all and a note.

  Raises:
    InputError: lists what is wrong with the config, the inputs or the output.
  """
  distributed.check_single_process("evaluate")
  problems = Problems()
  settings = problems(lambda: read(EvaluateConfig, config))
  checkpoints = problems(lambda: open_models(inputs)) or []
  paths = [checkpoint.path for checkpoint in checkpoints]
  if output:
    problems(lambda: _check_output(user_path(output), paths))
  problems.check()
  assert settings is not None
  trajectory.check_comparable(checkpoints)
  with _locked(output):
    scores = _scores(settings, checkpoints, progress)
    rows = _rows(checkpoints, scores)
    print(presentable(_table(rows, settings.split)))
    if output:
      write_json(
        make_directory(output) / _FILE,
        {
          "split": settings.split,
          "sequences": len(scores[0].losses_N),
          "tokens": int(scores[0].targets_N.sum()),
          "rows": [dataclasses.asdict(row) for row in rows],
        },
      )
  return rows


def _check_output(output: epath.Path, inputs: Sequence[epath.Path]) -> None:
  """Refuses a directory in which evaluation.json must not be written."""
  file = output / _FILE
  problems = Problems()
  problems(lambda: check_place(file, inputs=inputs))
  problems(lambda: check_can_make(output))
  if file.exists() and not _is_evaluation(file):
    problems.add(f"{file} is not an earlier evaluation; it is left as it is")
  problems.check()


def _is_evaluation(file: epath.Path) -> bool:
  try:
    value = read_json(read_file(file))
  except (OSError, ValueError):
    return False
  keys = {"split", "sequences", "tokens", "rows"}
  return isinstance(value, dict) and value.keys() == keys


def _locked(output: epath.PathLike) -> contextlib.AbstractContextManager[None]:
  """Keeps others from the output.

  The lock is in a directory that is there, which may be all that can be
  written to, else beside it.
  """
  if not output:
    return contextlib.nullcontext()
  path = user_path(output)
  inside = path / _FILE if path.exists() else path
  return locks.exclusive(inside, f"the output {output}")


def _scores(
  config: EvaluateConfig,
  checkpoints: Sequence[Checkpoint],
  progress: Progress,
) -> list[Score]:
  first = checkpoints[0].metadata
  mesh = make_mesh(**vars(config.mesh))
  where = shardings(abstract_params(first), mesh)
  budget = config.memory_budget_gb
  choose_place(checkpoints[:1], where, merged_trees=1, memory_budget_gb=budget)
  scorer = open_scorer(
    first,
    mesh,
    batch_size=config.batch_size,
    data=config.data,
    seq_len=config.seq_len,
    progress=lambda text: progress("data", 0, 0, text),
  )
  heldout = scorer.on(config.split, config.sequences)
  scores = []
  for number, checkpoint in enumerate(checkpoints, start=1):
    scores.append(heldout(load_params(checkpoint, where)))
    progress("evaluate", number, len(checkpoints), checkpoint.name)
  return scores


def _rows(
  checkpoints: Sequence[Checkpoint], scores: Sequence[Score]
) -> list[Evaluation]:
  rows = []
  for checkpoint, score in zip(checkpoints, scores):
    delta = paired.difference(score, scores[0])
    rows.append(
      Evaluation(
        checkpoint.name,
        score.nats_per_token,
        paired.loss(score).stderr,
        score.bits_per_byte,
        delta.mean,
        delta.stderr,
      )
    )
  return rows


def _table(rows: Sequence[Evaluation], split: str) -> str:
  width = max(len(row.name) for row in rows)
  lines = [
    f"{split + ' split':<{width}}  nats/token  stderr  bits/byte"
    "  vs first  paired stderr"
  ]
  lines += [
    f"{row.name:<{width}}  {row.nats_per_token:10.4f}  {row.stderr:6.4f}"
    f"  {row.bits_per_byte:9.4f}  {row.delta:+8.4f}  {row.delta_stderr:13.4f}"
    for row in rows
  ]
  return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
  flags = runner.parse(
    argv,
    doc=__doc__ or "",
    configs={"config": ("evaluate", None)},
    strings={
      "inputs": (
        None,
        "step directories, workdir@step or Hugging Face folders, "
        "comma-separated",
      ),
      "output": ("", "a directory that gets evaluation.json"),
    },
    booleans={},
    read={"inputs": flag_values.split_list},
  )
  runner.set_up_jax()
  written = epath.Path(flags.output or os.devnull) / _FILE
  with runner.whole_output(written):
    evaluate(
      flags.config,
      flags.inputs,
      output=flags.output,
      progress=runner.TerminalProgress(),
    )
