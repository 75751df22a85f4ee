"""Merges checkpoints into one.

  python -m jaxmerge.merge --config=configs/merge/uniform.py \\
      [--inputs=A,B,...] --output=DIR [--weights=.3,.7] \\
      [--memory_budget_gb=G] [--overwrite] [--allow_unrelated] \\
      [--allow_other_tokenizer] [--dry_run]

Methods (--config.method=NAME), whose parameters are keys of --config:
"""

import sys

from jaxmerge.cli import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("merge"))

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from etils import epath
from ml_collections import config_dict

from jaxmerge import locks
from jaxmerge.checkpoints.compatibility import check_mergeable
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.checkpoints.merged import left_of
from jaxmerge.checkpoints.outputs import check_output
from jaxmerge.cli import runner
from jaxmerge.config_reading import examine
from jaxmerge.errors import InputError, Problems
from jaxmerge.files import check_can_make, free_bytes, user_path
from jaxmerge.merging import method as methods
from jaxmerge.merging.config import MergeConfig
from jaxmerge.merging.dry_run import describe
from jaxmerge.merging.grouped_weights import grouped_weights
from jaxmerge.merging.merge_plan import MergePlan, plan_merge
from jaxmerge.merging.method import METHODS
from jaxmerge.merging.streamed_merge import run_streamed
from jaxmerge.parallel.distributed import (
  held_by_first,
  on_every_process,
  on_first_process,
)
from jaxmerge.parallel.mesh import host_budget
from jaxmerge.progress import Progress
from jaxmerge.redaction import presentable

if TYPE_CHECKING:  # data and model are not needed by most methods
  from jaxmerge.evaluation.evaluator import Setting


def merge(
  config: config_dict.ConfigDict | MergeConfig,
  inputs: Sequence[str],
  output: epath.PathLike,
  *,
  weights: Sequence[float] = (),
  memory_budget_gb: float = 0.0,
  overwrite: bool = False,
  allow_unrelated: bool = False,
  allow_other_tokenizer: bool = False,
  dry_run: bool = False,
  progress: Progress | None = None,
) -> None:
  """Merges `inputs` into the directory `output`, of the same format.

  Of a job of several processes the first works and the others wait for it,
  unless the method needs data.

  Args:
    config: as configs/merge/uniform.py, or a whole recipe, as ties.py.
    inputs: step directories or `workdir@step`, or all Hugging Face
      directories; none: the config's; see checkpoints/input_order.py.
    output: a new step directory of kind `merged`, or Hugging Face directory.
    weights: one per input, for methods that take them, with layer groups for
      one group after the other; none: the config's.
    memory_budget_gb: instead of the config's, unless 0.
    overwrite: replace an existing output.
    allow_unrelated: take different or unknown runs, or a changed corpus.
    allow_other_tokenizer: take different vocabularies.
    dry_run: print the plan and stop after the checks.
    progress: told how far the work is; None: prints it.

  Raises:
    InputError: lists what is wrong with the config, the inputs or the output.
  """
  progress = progress or runner.TerminalProgress()
  output = user_path(output)
  settings, wrong = examine(MergeConfig, config)
  if settings is None:
    raise InputError(wrong)
  inputs = inputs or settings.inputs
  weights = methods.weights_of_inputs(
    METHODS.get(settings.method), len(inputs), weights or settings.weights
  )
  typed = (inputs, output, weights, memory_budget_gb)
  allowed = {
    "allow_unrelated": allow_unrelated,
    "allow_other_tokenizer": allow_other_tokenizer,
  }

  def work() -> None:
    plan, setting = on_every_process(
      lambda: _open(settings, wrong, *typed, overwrite, allowed)
    )
    _run(plan, setting, settings, output, overwrite, dry_run, progress)

  method = METHODS.get(settings.method)
  if method is not None and method.data:
    work()  # programs over all devices are called by all processes
  else:
    on_first_process(work)


def _run(
  plan: MergePlan,
  setting: "Setting | None",
  config: MergeConfig,
  output: epath.Path,
  overwrite: bool,
  dry_run: bool,
  progress: Progress,
) -> None:
  """Merges what has been checked, or says how."""
  # Looked for before an input is replaced.
  said = list(filter(None, (plan.order, left_of(plan.sources))))
  if dry_run:
    lines = [describe(plan, free_bytes(output)), *said]
    if setting is not None:
      from jaxmerge.evaluation.data_dependent import expected

      lines += expected(plan, setting, config.search_sequences)
    on_first_process(lambda: print(presentable("\n".join(lines))))
    return
  for text in said:
    progress.note("merge", text)
  asked: dict[str, Any] = {"overwrite": overwrite, "progress": progress}
  with held_by_first(locks.exclusive(output, f"the output {output}")):
    if setting is not None:
      # Imported here: data and model are not needed by any other method.
      from jaxmerge.evaluation.data_dependent import run_measured

      run_measured(plan, setting, config.search_sequences, output, **asked)
    else:
      run_streamed(plan, output, **asked)
  progress.note("merge", f"saved {output}")


def _open(
  config: MergeConfig,
  wrong: Sequence[str],
  inputs: Sequence[str],
  output: epath.Path,
  weights: Sequence[float],
  budget_gb: float,
  overwrite: bool,
  allowed: Mapping[str, bool],
) -> tuple[MergePlan, "Setting | None"]:
  """Checks everything that can be known before an array is read."""
  method, knobs = METHODS.get(config.method), config.knobs
  problems = Problems(wrong)
  if method is not None:
    asked = (method, len(inputs), weights, knobs)
    problems.extend(methods.problems(*asked))
    if not problems:
      problems.extend(methods.weight_problems(*asked))
  if not (math.isfinite(budget_gb) and budget_gb >= 0):
    problems.add(f"--memory_budget_gb must be at least 0, got {budget_gb}")
  problems(lambda: check_can_make(output.parent))
  if not inputs:
    problems.add("no input is given, by --inputs=A,B,... or config.inputs")
  sources = (problems(lambda: open_inputs(inputs)) if inputs else []) or []
  of_base = getattr(knobs, "base", "")
  bases = (problems(lambda: open_inputs([of_base])) if of_base else []) or []
  together = [*bases, *sources]
  read = [source.path for source in together]
  problems(lambda: check_output(output, overwrite=overwrite, inputs=read))
  setting = None
  if sources and method is not None:
    problems(lambda: check_mergeable(together, **allowed))
    if not wrong and method.weights != "none":
      problems(lambda: grouped_weights(knobs, sources, weights))
    if method.data:  # data and model are not needed by any other method
      from jaxmerge.evaluation.data_dependent import check_measurable

      size, data, length = config.batch_size, config.data, config.seq_len
      text = config.mesh, size, data, length, allowed["allow_unrelated"]
      of = "" if wrong else getattr(knobs, "layer_groups", "")
      setting = problems(lambda: check_measurable(sources, *text, of))
  problems.check()
  assert method is not None
  budget_gb = budget_gb or config.memory_budget_gb
  if setting is not None:
    setting = setting._replace(memory_budget_gb=budget_gb)
  plan = plan_merge(
    method,
    knobs,
    sources,
    bases[0] if bases else None,
    weights,
    budget=host_budget(budget_gb),
    dtype=config.dtype,
    output=output,
  )
  return plan, setting


def main(argv: Sequence[str]) -> None:
  flags, job = runner.parse(
    argv,
    doc=__doc__ or "",
    records=METHODS,
    configs={"config": ("merge", None)},
    strings={
      "inputs": ("", f"{runner.INPUTS}; else config.inputs"),
      "output": (None, "the directory to write, of the inputs' format"),
      "weights": ("", "one number per input; else config.weights"),
      "memory_budget_gb": ("0", "another spelling of config.memory_budget_gb"),
    },
    booleans={
      "overwrite": "replace an existing output",
      "allow_unrelated": "merge checkpoints of different or unknown runs",
      "allow_other_tokenizer": "merge checkpoints of different vocabularies",
      "dry_run": "check everything, print the plan, stop",
    },
  )
  method = METHODS.get(flags.config.method)
  if method is None or not method.data:
    # A training run on this machine's accelerator is left alone.
    jax.config.update("jax_platforms", "cpu")
  runner.set_up_jax(flags, job)
  with runner.whole_output(flags.output), runner.TerminalProgress() as progress:
    merge(**vars(flags), progress=progress)
