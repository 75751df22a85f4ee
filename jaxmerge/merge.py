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
from etils import epath
from ml_collections import config_dict

from jaxmerge import flag_values, locks, runner
from jaxmerge.checkpoints import trajectory
from jaxmerge.checkpoints.outputs import check_output
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.config_reading import examine
from jaxmerge.errors import Problems, check
from jaxmerge.files import check_can_make, free_bytes, user_path
from jaxmerge.merging import method as methods
from jaxmerge.merging.config import MergeConfig
from jaxmerge.merging.merge_plan import (
  MergePlan,
  Progress,
  describe,
  plan_merge,
  run_streamed,
)
from jaxmerge.merging.method import METHODS, Method
from jaxmerge.parallel import distributed
from jaxmerge.parallel.mesh import host_budget
from jaxmerge.shown import presentable


def merge(
  config: config_dict.ConfigDict | MergeConfig,
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
    weights: one per input, for methods that take them; with
      config.layer_groups one per input for each group: the embeddings, the
      bands, the head.
    memory_budget_gb: instead of the config's, unless 0.
    overwrite: replace an existing output.
    allow_unrelated: merge checkpoints of different runs or tokenizers, and
      measure on a corpus that has changed since training.
    dry_run: print the plan and stop after the checks.
    progress: called with a stage, what is done, what there is in all and a
      note.

  Raises:
    InputError: lists what is wrong with the config, the inputs or the output.
  """
  distributed.check_single_process("merge")
  output = user_path(output)
  settings, problems = examine(MergeConfig, config)
  check(problems if settings is None else ())
  assert settings is not None
  plan = _open(
    settings,
    problems,
    inputs,
    output,
    weights,
    memory_budget_gb,
    overwrite,
    allow_unrelated,
  )
  if dry_run:
    print(presentable(describe(plan, free_bytes(output))))
    return
  with locks.exclusive(output, f"the output {output}"):
    if plan.method.data:
      # Imported here: data and model are not needed by any other method.
      from jaxmerge.evaluation.measured_merge import run_measured

      run_measured(
        plan,
        settings,
        output,
        overwrite=overwrite,
        allow_unrelated=allow_unrelated,
        progress=progress,
      )
    else:
      run_streamed(plan, output, overwrite=overwrite, progress=progress)
  progress("merge", 0, 0, f"saved {output}")


def _open(
  config: MergeConfig,
  wrong: Sequence[str],
  inputs: Sequence[str],
  output: epath.Path,
  weights: Sequence[float],
  budget_gb: float,
  overwrite: bool,
  allow_unrelated: bool,
) -> MergePlan:
  """Checks everything that can be known before an array is read."""
  problems = Problems(wrong)
  method, knobs = METHODS.get(config.method), config.knobs
  if method is not None:
    asked = (method, len(inputs), weights, knobs)
    found = methods.problems(*asked)
    problems.extend(
      found if found or wrong else methods.weight_problems(*asked)
    )
  if not (math.isfinite(budget_gb) and budget_gb >= 0):
    problems.add(f"--memory_budget_gb must be at least 0, got {budget_gb}")
  problems(lambda: check_can_make(output.parent))
  sources = problems(lambda: trajectory.open_inputs(inputs)) or []
  of_base = getattr(knobs, "base", "")
  opened = (
    problems(lambda: trajectory.open_inputs([of_base])) if of_base else None
  )
  base = opened[0] if opened else None
  read = [source.path for source in [*sources, *(opened or [])]]
  problems(lambda: check_output(output, overwrite=overwrite, inputs=read))
  if sources and method is not None:
    problems(
      lambda: _check_sources(config, method, sources, base, allow_unrelated)
    )
  problems.check()
  assert method is not None
  return plan_merge(
    method,
    knobs,
    sources,
    base,
    weights,
    budget=host_budget(budget_gb or config.memory_budget_gb),
    output=output,
  )


def _check_sources(
  config: MergeConfig,
  method: Method,
  sources: Sequence[Checkpoint],
  base: Checkpoint | None,
  allow_unrelated: bool,
) -> None:
  """Lists why these sources cannot be merged by that method."""
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
  method = METHODS.get(config.get("method"))
  return method is not None and method.data


def main(argv: Sequence[str]) -> None:
  flags = runner.parse(
    argv,
    doc=f"{__doc__}{methods.help_text()}",
    configs={"config": ("merge", None)},
    strings={
      "inputs": (
        None,
        "step directories, workdir@step or Hugging Face folders, "
        "comma-separated",
      ),
      "output": (None, "the directory to write, of the inputs' format"),
      "weights": (
        "",
        "one number per input, for methods that take them; with "
        "config.layer_groups for each group",
      ),
      "memory_budget_gb": ("0", "another spelling of config.memory_budget_gb"),
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
