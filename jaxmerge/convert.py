"""Converts a checkpoint between Orbax and Hugging Face, exactly.

python -m jaxmerge.convert --input=DIR --output=DIR --format=hf|orbax
"""

import sys

from jaxmerge.cli import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("convert"))

from collections.abc import Sequence

from etils import epath

from jaxmerge import locks
from jaxmerge.checkpoints import models
from jaxmerge.checkpoints.merged import left_of
from jaxmerge.checkpoints.model_inputs import open_models
from jaxmerge.checkpoints.outputs import check_output
from jaxmerge.cli import runner
from jaxmerge.errors import Problems
from jaxmerge.files import check_can_make, user_path
from jaxmerge.parallel.distributed import on_first_process
from jaxmerge.redaction import presentable


def convert(input: str, output: epath.PathLike, format: str) -> None:
  """Writes `input` as a new directory `output`.

  Of a job of several processes one works, and the others wait for it.

  Args:
    input: a step directory, `workdir@step`, with `:ema` or the like behind it
      an average that a run has kept, or a Hugging Face directory.
    output: a directory that does not exist yet.
    format: "hf" or "orbax".

  Raises:
    InputError: the input is missing or damaged, or the output exists or cannot
      be written.
  """
  on_first_process(lambda: _convert(input, output, format))


def _convert(input: str, output: epath.PathLike, format: str) -> None:
  """All of it, in one process of a job."""
  problems = Problems()
  opened = problems(lambda: open_models([input])) or []
  read = [source.path for source in opened]
  if user_path(output).exists():
    problems.add(f"{output} exists; name a place where nothing is")
  else:
    problems(lambda: check_output(output, overwrite=False, inputs=read))
  problems(lambda: check_can_make(user_path(output).parent))
  problems(lambda: models.check_format(format))
  problems.check()
  with locks.exclusive(output, f"the output {output}"):
    compared = models.convert(opened[0], output, format)
  note = "" if compared else " (tensors compared, logits not: too large)"
  left = left_of(opened)
  print(presentable(f"{left}\n" * bool(left) + f"saved {output}{note}"))


def main(argv: Sequence[str]) -> None:
  flags, job = runner.parse(
    argv,
    doc=__doc__ or "",
    configs={},
    strings={
      "input": (
        None,
        "a step directory, workdir@step, workdir@step:ema (an average that a "
        "run has kept) or a Hugging Face folder",
      ),
      "output": (None, "the directory to write"),
      "format": (None, "hf or orbax"),
    },
    booleans={},
  )
  runner.set_up_jax(flags, job)
  with runner.whole_output(flags.output):
    convert(**vars(flags))
