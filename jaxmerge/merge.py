"""Merges checkpoints into one.

  python -m jaxmerge.merge --config=configs/merge/uniform.py \\
      --inputs=A,B,... --output=DIR [--weights=.3,.7] \\
      [--memory_budget_gb=G] [--overwrite] [--allow_unrelated] [--dry_run]

Methods (--config.method=), with their parameters (--config.density=.3, ...):
"""

import sys

from jaxmerge import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("merge"))

import math
from collections.abc import Sequence

import jax
import psutil
from etils import epath
from ml_collections import config_dict

from jaxmerge import flag_values, locks, runner
from jaxmerge.checkpoints import trajectory
from jaxmerge.checkpoints.metadata import abstract_params
from jaxmerge.checkpoints.outputs import check_output
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.data import sections
from jaxmerge.errors import Problems, check
from jaxmerge.files import check_can_make, free_bytes, user_path
from jaxmerge.merging import methods
from jaxmerge.merging.average import normalise
from jaxmerge.merging.jobs import (
  Job,
  Progress,
  WeightGroups,
  grouped,
  plan,
  run_streamed,
  sized,
)
from jaxmerge.parallel import distributed
from jaxmerge.shown import presentable

SCHEMA: runner.Schema = {
  "method": str,
  **{key: type(value) for key, value in methods.DEFAULTS.items()},
  "search_sequences": int,
  "batch_size": int,
  "seq_len": int,
  "data": dict(sections.OTHER_CORPUS),
  "mesh": {"data": int, "fsdp": int, "tensor": int},
}


def merge(
  config: config_dict.ConfigDict,
  inputs: Sequence[str],
  output: epath.PathLike,
  *,
  weights: Sequence[float] = (),
  memory_budget_gb: float = 0.0,
  overwrite: bool = False,
  allow_unrelated: bool = False,
  dry_run: bool = False,
  progress: Progress,
) -> None:
  """Merges `inputs` into the directory `output`, of the same format.

  Args:
    config: as configs/merge/uniform.py.
    inputs: step directories or `workdir@step`, or all Hugging Face
      directories, of any model; oldest first where the method minds their
      order.
    output: a new step directory of kind `merged`, or Hugging Face directory.
    weights: one per input, for methods that take them; with config.bands one
      per input for each group: the embeddings, the bands, the head.
    memory_budget_gb: GiB for parameters in memory; 0: half of what is free.
    overwrite: replace an existing output.
    allow_unrelated: merge checkpoints of different runs or tokenizers, and
      measure on a corpus that has changed since training.
    dry_run: print the plan and stop after the checks.
    progress: called with a stage, what is done, what there is in all and a
      note.

  Raises:
    InputError: lists what is wrong with the config, the inputs or the output.
  """
  runner.check_config(config, SCHEMA)
  distributed.check_single_process("merge")
  output = user_path(output)
  job = _open(
    config,
    inputs,
    output,
    weights,
    memory_budget_gb,
    overwrite,
    allow_unrelated,
  )
  if dry_run:
    print(presentable(plan(job, free_bytes(output))))
    return
  with locks.exclusive(output, f"the output {output}"):
    if methods.METHODS[job.method].data:
      # Imported here: data and model are not needed by any other method.
      from jaxmerge.evaluation.measured_merge import run_measured

      run_measured(
        job,
        config,
        output,
        overwrite=overwrite,
        allow_unrelated=allow_unrelated,
        progress=progress,
      )
    else:
      run_streamed(job, output, overwrite=overwrite, progress=progress)
  progress("merge", 0, 0, f"saved {output}")


def _open(
  config: config_dict.ConfigDict,
  inputs: Sequence[str],
  output: epath.Path,
  weights: Sequence[float],
  budget_gb: float,
  overwrite: bool,
  allow_unrelated: bool,
) -> Job:
  """Checks everything that can be known before an array is read."""
  name = config.method
  parameters = {key: config[key] for key in methods.DEFAULTS}
  problems = Problems(
    methods.problems(name, len(inputs), weights, parameters)
    + [
      f"config.{key} must be positive, got {config[key]}"
      for key in ("search_sequences", "batch_size")
      if config[key] < 1
    ]
    + [
      f"config.mesh.{axis} must be positive, or -1, got {size}"
      for axis, size in config.mesh.items()
      if size < 1 and size != -1
    ]
    + (
      [f"config.seq_len must be at least 0, got {config.seq_len}"]
      if config.seq_len < 0
      else []
    )
    + sections.other_corpus_problems(config.data)
    + (
      []
      if math.isfinite(budget_gb) and budget_gb >= 0
      else [f"--memory_budget_gb must be at least 0, got {budget_gb}"]
    )
  )
  problems(lambda: check_can_make(output.parent))
  sources = problems(lambda: trajectory.open_inputs(inputs)) or []
  opened = config.base and problems(
    lambda: trajectory.open_inputs([config.base])
  )
  base = opened[0] if opened else None
  read = [source.path for source in [*sources, *(opened or [])]]
  problems(lambda: check_output(output, overwrite=overwrite, inputs=read))
  if sources and name in methods.METHODS:
    problems(lambda: _check_sources(config, sources, base, allow_unrelated))
  problems.check()
  groups: WeightGroups | None = None
  if parameters["bands"]:
    trajectory.check_step_directories(sources)
    tree = abstract_params(sources[0].metadata)
    groups = grouped(tree, parameters["bands"], weights)
    weights = groups.mean_weights
  fixed = methods.fixed_weights(name, len(inputs), weights, parameters)
  if name in ("slerp", "karcher") and sum(w != 0 for w in weights) == 1:
    fixed = list(normalise(weights))  # one end of the arc is that tree
  budget = budget_gb * 2**30 or psutil.virtual_memory().available / 2
  return sized(
    Job(
      name,
      parameters,
      sources,
      base,
      fixed or list(weights),
      fixed is not None,
      budget,
      groups,
    ),
    output,
  )


def _check_sources(
  config: config_dict.ConfigDict,
  sources: Sequence[Checkpoint],
  base: Checkpoint | None,
  allow_unrelated: bool,
) -> None:
  """Lists why these sources cannot be merged by that method."""
  method = methods.METHODS[config.method]
  problems = Problems()
  together = [*([base] if base else []), *sources]
  problems(
    lambda: trajectory.check_mergeable(
      together, allow_unrelated=allow_unrelated
    )
  )
  if method.ordered:
    problems(lambda: check(_order_problems(sources)))
  if method.data:  # data and model are not needed by any other method
    from jaxmerge.evaluation.measured_merge import check_measurable

    problems(
      lambda: check_measurable(sources, config, allow_unrelated=allow_unrelated)
    )
  problems.check()


def _order_problems(sources: Sequence[Checkpoint]) -> list[str]:
  steps = [source.metadata.step for source in sources]
  # Hugging Face directories may not say: then they are in the order typed.
  if steps == sorted(set(steps)) or not any(steps):
    return []
  return [f"the inputs must be given oldest first, got steps {steps}"]


def _needs_devices(config: config_dict.ConfigDict) -> bool:
  method = methods.METHODS.get(config.get("method"))
  return method is not None and method.data


def main(argv: Sequence[str]) -> None:
  flags = runner.parse(
    argv,
    doc=f"{__doc__}{methods.help_text()}",
    configs={"config": None},
    strings={
      "inputs": (
        None,
        "step directories, workdir@step or Hugging Face folders, "
        "comma-separated",
      ),
      "output": (None, "the directory to write, of the inputs' format"),
      "weights": (
        "",
        "one number per input, for methods that take them; with config.bands "
        "for each group",
      ),
      "memory_budget_gb": ("0", "GiB for parameters; 0: half of what is free"),
    },
    booleans={
      "overwrite": "replace an existing output",
      "allow_unrelated": "merge checkpoints of different runs or tokenizers",
      "dry_run": "check everything, print the plan, stop",
    },
    read={
      "inputs": flag_values.split_list,
      "weights": flag_values.numbers,
      "memory_budget_gb": flag_values.number,
    },
  )
  if not _needs_devices(flags.config):
    # A training run on this machine's accelerator is left alone.
    jax.config.update("jax_platforms", "cpu")
  runner.set_up_jax()
  with runner.whole_output(flags.output):
    merge(
      flags.config,
      flags.inputs,
      flags.output,
      weights=flags.weights,
      memory_budget_gb=flags.memory_budget_gb,
      overwrite=flags.overwrite,
      allow_unrelated=flags.allow_unrelated,
      dry_run=flags.dry_run,
      progress=runner.TerminalProgress(),
    )
