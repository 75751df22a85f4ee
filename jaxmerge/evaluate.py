"""Scores checkpoints on text that they have not been trained on.

  python -m jaxmerge.evaluate --config=configs/evaluate/quickstart.py \\
      --inputs=A,B,... [--output=DIR]

Prints each input's score (nats/token and bits/byte, if config.evaluator says
nothing else) and the difference to the first input with its paired standard
error.
"""

import sys

from jaxmerge.cli import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("evaluate"))

import contextlib
import dataclasses
import os
from collections.abc import Sequence

from etils import epath
from ml_collections import config_dict

from jaxmerge import locks
from jaxmerge.checkpoints.inputs import Checkpoint, check_comparable
from jaxmerge.checkpoints.model_inputs import load_params, open_models
from jaxmerge.checkpoints.outputs import check_place
from jaxmerge.cli import flag_values, runner
from jaxmerge.config_reading import read
from jaxmerge.errors import Problems
from jaxmerge.evaluation import statistics
from jaxmerge.evaluation.config import EvaluateConfig
from jaxmerge.evaluation.evaluator import EVALUATORS, Setting
from jaxmerge.evaluation.score import Score
from jaxmerge.files import check_can_make, make_directory, user_path, write_json
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.merging.resident import choose_placement
from jaxmerge.parallel import distributed
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
from jaxmerge.progress import Progress
from jaxmerge.reading import read_file, read_json
from jaxmerge.redaction import presentable

_FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One input's score; its difference is to the first input."""

  name: str
  score: Score
  stderr: float
  delta: float
  delta_stderr: float

  def as_json(self) -> dict[str, str | float]:
    """Numbers by name; a score in several units by those."""
    return {
      "name": self.name,
      _json_name(self.score.unit): self.score.mean,
      "stderr": self.stderr,
      **{_json_name(unit): x for unit, x in self.score.extras.items()},
      "delta": self.delta,
      "delta_stderr": self.delta_stderr,
    }


def _json_name(unit: str) -> str:
  """For example "nats_per_token"."""
  return unit.replace("/", "_per_").replace(" ", "_")


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
    progress: told how far the work is.

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
  check_comparable(checkpoints)
  with _locked(output):
    scores = _scores(settings, checkpoints, progress)
    rows = _rows(checkpoints, scores)
    print(presentable(_table(rows, settings.split)))
    if output:
      write_json(
        make_directory(output) / _FILE,
        {
          "split": settings.split,
          "sequences": len(scores[0].values_N),
          "tokens": scores[0].tokens,
          "rows": [row.as_json() for row in rows],
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
  choose_placement(
    checkpoints[:1], where, merged_trees=1, memory_budget_gb=budget
  )
  opened = EVALUATORS[config.evaluator].open(
    Setting.of(first, mesh, config), lambda text: progress.note("data", text)
  )
  evaluator = opened.on(config.split, config.sequences)
  scores = []
  for number, checkpoint in enumerate(checkpoints, start=1):
    scores.append(evaluator.score(load_params(checkpoint, where)))
    progress.stage("evaluate", number, len(checkpoints), checkpoint.name)
  return scores


def _rows(
  checkpoints: Sequence[Checkpoint], scores: Sequence[Score]
) -> list[Evaluation]:
  rows = []
  for checkpoint, score in zip(checkpoints, scores):
    delta = statistics.difference(score, scores[0])
    stderr = statistics.ratio(score.values_N, score).stderr
    rows.append(Evaluation(checkpoint.name, score, stderr, *delta))
  return rows


def _table(rows: Sequence[Evaluation], split: str) -> str:
  width = max(len(row.name) for row in rows)

  def line(name: str, *cells: str) -> str:
    columns = zip(cells, widths, strict=True)
    return "  ".join([f"{name:<{width}}", *(c.rjust(w) for c, w in columns)])

  score = rows[0].score
  names = (score.unit, "stderr", *score.extras, "vs first", "paired stderr")
  widths = [max(len(name), 6) for name in names]
  lines = [line(f"{split} split", *names)]
  for row in rows:
    delta = f"{row.delta:+.4f}", f"{row.delta_stderr:.4f}"
    numbers = (row.score.mean, row.stderr, *row.score.extras.values())
    lines.append(line(row.name, *(f"{x:.4f}" for x in numbers), *delta))
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
