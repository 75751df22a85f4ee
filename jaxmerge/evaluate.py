"""Scores checkpoints on text that they have not been trained on.

  python -m jaxmerge.evaluate --config=configs/evaluate/quickstart.py \\
      --inputs=A,B,... [--output=DIR]

Prints each input's score (nats/token and bits/byte, if config.evaluator says
nothing else) and the difference to the first input with its paired standard
error. Inputs may be of several sizes and tokenizers.
"""

import sys

from jaxmerge.cli import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("evaluate"))

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath
from ml_collections import config_dict

from jaxmerge import locks
from jaxmerge.checkpoints.compatibility import check_comparable
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.merged import identity
from jaxmerge.checkpoints.model_inputs import open_models
from jaxmerge.checkpoints.outputs import check_place
from jaxmerge.cli import runner
from jaxmerge.config_reading import read
from jaxmerge.errors import Problems
from jaxmerge.evaluation import comparison, statistics
from jaxmerge.evaluation.config import EvaluateConfig
from jaxmerge.evaluation.evaluator import DEFAULT_EVALUATOR
from jaxmerge.evaluation.evaluators.heldout_loss import BITS
from jaxmerge.evaluation.score import Score
from jaxmerge.files import check_can_make, make_directory, user_path, write_json
from jaxmerge.parallel.distributed import (
  is_first_process,
  on_every_process,
  on_first_process,
)
from jaxmerge.parallel.exchange import check_same
from jaxmerge.progress import Progress
from jaxmerge.reading import read_file, read_json
from jaxmerge.redaction import presentable

_FILE = "evaluation.json"


class Evaluation(NamedTuple):
  """One input's score; its difference is to the first input."""

  name: str
  score: Score
  stderr: float
  delta: float
  delta_stderr: float

  def as_json(self) -> dict[str, str | float]:
    """Numbers by name, as "nats_per_token"."""
    numbers = {
      self.score.unit: self.score.mean,
      "stderr": self.stderr,
      **self.score.extras,
      "delta": self.delta,
      "delta_stderr": self.delta_stderr,
    }
    return {"name": self.name} | {
      unit.replace("/", "_per_").replace(" ", "_"): x
      for unit, x in numbers.items()
    }


def evaluate(
  config: config_dict.ConfigDict | EvaluateConfig,
  inputs: Sequence[str],
  *,
  output: epath.PathLike = "",
  progress: Progress | None = None,
) -> list[Evaluation]:
  """Scores each input on the same text and prints a table.

  Inputs of one tokenizer are scored on the same sequences, of several on the
  same whole documents.

  Args:
    config: as configs/evaluate/quickstart.py.
    inputs: step directories, `workdir@step`, `workdir@step:ema` or Hugging
      Face directories.
    output: a directory that gets evaluation.json; "" writes nothing.
    progress: told how far the work is; None: prints it.

  Raises:
    InputError: lists what is wrong with the config, the inputs or the output.
  """
  progress = progress or runner.TerminalProgress()
  settings, checkpoints = on_every_process(
    lambda: _checked(config, inputs, output)
  )
  check_same(lambda: {c.name: identity(c) for c in checkpoints})
  with contextlib.ExitStack() as stack:
    if output:
      on_first_process(lambda: stack.enter_context(_lock(output)))
    scores = comparison.scores(settings, checkpoints, progress)
    rows = []
    for checkpoint, score in zip(checkpoints, scores):
      delta = statistics.difference(score, scores[0])
      stderr = statistics.ratio(score.values_N, score).stderr
      rows.append(Evaluation(checkpoint.name, score, stderr, *delta))
    on_first_process(lambda: _tell(rows, settings.split, output))
  return rows


def _checked(
  config: config_dict.ConfigDict | EvaluateConfig,
  inputs: Sequence[str],
  output: epath.PathLike,
) -> tuple[EvaluateConfig, list[Checkpoint]]:
  """Checks all that can be before anything is scored, in each process."""
  problems = Problems()
  settings = problems(lambda: read(EvaluateConfig, config))
  checkpoints = problems(lambda: open_models(inputs)) or []
  if output and is_first_process():
    folder, paths = user_path(output), [c.path for c in checkpoints]
    file = folder / _FILE
    problems(lambda: check_place(file, inputs=paths))
    problems(lambda: check_can_make(folder))
    if file.exists() and not _is_evaluation(file):
      problems.add(f"{file} is not an earlier evaluation; it is left as it is")
  problems.check()
  assert settings is not None
  is_per_byte = settings.evaluator == DEFAULT_EVALUATOR
  check_comparable(checkpoints, allow_other_tokenizer=is_per_byte)
  return settings, checkpoints


def _lock(output: epath.PathLike) -> contextlib.AbstractContextManager[None]:
  folder = user_path(output)
  # In a directory that is there, which may be all that can be written to.
  inside = folder / _FILE if folder.exists() else folder
  return locks.exclusive(inside, f"the output {output}")


def _tell(
  rows: Sequence[Evaluation], split: str, output: epath.PathLike
) -> None:
  """Prints the table, and writes it."""
  print(presentable(_table(rows, split)))
  if output:
    write_json(
      make_directory(output) / _FILE,
      {
        "split": split,
        **_counts(rows[0].score),
        "rows": [row.as_json() for row in rows],
      },
    )


def _is_evaluation(file: epath.Path) -> bool:
  try:
    value = read_json(read_file(file))
  except (OSError, ValueError):
    return False
  counts = {"sequences", "tokens"}, {"documents", "bytes"}
  keys = [{"split", "rows", *counted} for counted in counts]
  return isinstance(value, dict) and value.keys() in keys


def _counts(score: Score) -> dict[str, int]:
  """The size of what all inputs are scored on."""
  items = len(score.values_N)
  if score.unit == BITS:
    return {"documents": items, "bytes": int(score.weights_N.sum())}
  return {"sequences": items, "tokens": score.tokens}


def _table(rows: Sequence[Evaluation], split: str) -> str:
  score = rows[0].score
  names = (score.unit, "stderr", *score.extras, "vs first", "paired stderr")
  width, widths = max(len(row.name) for row in rows), [*map(len, names)]
  documents = (
    f"The tokenizers differ: bits/byte are compared, over {len(score.values_N)}"
    " whole documents; nats/token are of each input's own tokens.\n"
  )
  lines = [(f"{split} split", *names)]
  for row in rows:
    numbers = (row.score.mean, row.stderr, *row.score.extras.values())
    delta = f"{row.delta:+.4f}", f"{row.delta_stderr:.4f}"
    lines.append((row.name, *(f"{x:.4f}" for x in numbers), *delta))
  return (score.unit == BITS) * documents + "\n".join(
    "  ".join(
      [f"{name:<{width}}", *(c.rjust(max(w, 6)) for c, w in zip(cells, widths))]
    )
    for name, *cells in lines
  )


def main(argv: Sequence[str]) -> None:
  flags, job = runner.parse(
    argv,
    doc=__doc__ or "",
    configs={"config": ("evaluate", None)},
    strings={
      "inputs": (None, runner.INPUTS),
      "output": ("", "a directory that gets evaluation.json"),
    },
    booleans=runner.RETURN_MEMORY,
  )
  runner.set_up_jax(flags, job)
  written = epath.Path(flags.output or os.devnull) / _FILE
  with runner.whole_output(written), runner.TerminalProgress() as progress:
    evaluate(flags.config, flags.inputs, output=flags.output, progress=progress)
