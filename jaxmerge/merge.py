"""Averages checkpoints into one.

  python -m jaxmerge.merge --config=configs/merge/uniform.py \\
      --inputs=A,B,... --output=DIR [--weights=.3,.7] [--overwrite] \\
      [--allow_unrelated] [--dry_run]

Methods (--config.method=):
  uniform   the plain mean (model soup, arXiv 2203.05482)
  weights   the weights of --weights, divided by their sum
"""

import math
import sys
from collections.abc import Sequence

from etils import epath
from ml_collections import config_dict

from jaxmerge import runner
from jaxmerge.checkpoints import trajectory
from jaxmerge.checkpoints.merged import save_merged
from jaxmerge.checkpoints.metadata import abstract_params
from jaxmerge.checkpoints.store import check_output, restore_params
from jaxmerge.errors import check
from jaxmerge.files import check_can_make, human_bytes
from jaxmerge.merging import average, coefficients
from jaxmerge.parallel import distributed
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import named_leaves, shardings
from jaxmerge.training.loop import Progress

SCHEMA: runner.Schema = {
  "method": str,
  "mesh": {"data": int, "fsdp": int, "tensor": int},
}


def merge(
  config: config_dict.ConfigDict,
  inputs: Sequence[str],
  output: epath.PathLike,
  *,
  weights: Sequence[float] = (),
  overwrite: bool = False,
  allow_unrelated: bool = False,
  dry_run: bool = False,
  progress: Progress,
) -> None:
  """Merges `inputs` into the step directory `output`.

  Args:
    config: as configs/merge/uniform.py.
    inputs: two or more step directories or `workdir@step`.
    output: a new step directory of kind `merged`.
    weights: one per input for the method "weights"; divided by their sum.
    overwrite: replace an existing output.
    allow_unrelated: merge checkpoints of different runs or tokenizers.
    dry_run: print the plan and stop after the checks.
    progress: called with a stage, inputs read, inputs in all and a note.

  Raises:
    InputError: lists what is wrong with the config, the inputs or the output.
  """
  runner.check_config(config, SCHEMA)
  distributed.check_single_process("merge")
  weights_K = _weights(config.method, len(inputs), weights)
  output = epath.Path(output)
  check_output(output, overwrite=overwrite)
  sources = trajectory.open_inputs(inputs)
  trajectory.check_mergeable(sources, allow_unrelated=allow_unrelated)
  abstract = abstract_params(sources[0].metadata)
  where = shardings(abstract, make_mesh(**config.mesh))
  check_can_make(output.parent)
  if dry_run:
    size = sum(
      math.prod(leaf.shape) * leaf.dtype.itemsize
      for leaf in named_leaves(abstract).values()
    )
    print(f"read {human_bytes(size * len(sources))}, write {human_bytes(size)}")
    for source, weight in zip(sources, weights_K):
      print(f"  {weight:.6f}  {source.name}")
    return
  used = [(source, w) for source, w in zip(sources, weights_K) if w]
  trees = []
  for number, (source, _) in enumerate(used, start=1):
    trees.append(restore_params(source.path, where))
    progress("merge", number, len(used), source.name)
  merged = average.weighted_average(trees, [w for _, w in used])
  save_merged(
    output,
    merged,
    sources,
    weights_K,
    method=config.method,
    overwrite=overwrite,
  )
  progress("merge", 0, 0, f"saved {output}")


def _weights(
  method: str, count: int, weights: Sequence[float]
) -> tuple[float, ...]:
  problems = []
  if count < 2:
    problems.append(f"a merge takes two inputs or more, got {count}")
  if method == "uniform" and weights:
    problems.append("the method 'uniform' takes no --weights")
  elif method == "weights" and len(weights) != count:
    problems.append(f"{count} inputs but {len(weights)} --weights")
  elif method not in ("uniform", "weights"):
    problems.append(f"unknown config.method {method!r}: uniform or weights")
  check(problems)
  if method == "uniform":
    return tuple(coefficients.uniform(count))
  return average.normalise(weights)


def _numbers(text: str) -> list[float]:
  numbers: list[float] = []
  problems: list[str] = []
  for word in filter(None, text.split(",")):
    try:
      numbers.append(float(word))
    except ValueError:
      problems.append(f"--weights: {word!r} is not a number")
  check(problems)
  return numbers


def main(argv: Sequence[str]) -> None:
  flags = runner.parse(
    argv,
    doc=__doc__ or "",
    configs={"config": None},
    strings={
      "inputs": (None, "step directories or workdir@step, comma-separated"),
      "output": (None, "the step directory to write"),
      "weights": ("", "one number per input, for --config.method=weights"),
    },
    booleans={
      "overwrite": "replace an existing output",
      "allow_unrelated": "merge checkpoints of different runs or tokenizers",
      "dry_run": "check everything, print the plan, stop",
    },
  )
  runner.set_up_jax()
  merge(
    flags.config,
    runner.split_list(flags.inputs),
    flags.output,
    weights=_numbers(flags.weights),
    overwrite=flags.overwrite,
    allow_unrelated=flags.allow_unrelated,
    dry_run=flags.dry_run,
    progress=runner.TerminalProgress(),
  )


if __name__ == "__main__":
  sys.exit(runner.run("merge", lambda: main(sys.argv[1:])))
