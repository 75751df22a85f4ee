"""Merges checkpoints into one.

  python -m jaxmerge.merge --config=configs/merge/uniform.py \\
      --inputs=A,B,... --output=DIR [--weights=.3,.7] [--overwrite] \\
      [--allow_unrelated] [--dry_run]

Methods (--config.method=), with their parameters (--config.density=.3, ...):
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import config_dict

from jaxmerge import runner
from jaxmerge.checkpoints import trajectory
from jaxmerge.checkpoints.merged import identity, save_merged
from jaxmerge.checkpoints.metadata import abstract_params
from jaxmerge.checkpoints.store import check_output, restore_params
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.errors import check
from jaxmerge.evaluation.held_out_splits import Scorer, open_scorer
from jaxmerge.files import check_can_make, human_bytes
from jaxmerge.merging import methods
from jaxmerge.merging.average import weighted_average
from jaxmerge.merging.fisher import diagonal_fisher
from jaxmerge.merging.regmean import layer_grams
from jaxmerge.parallel import distributed
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import named_leaves, shardings
from jaxmerge.training.loop import Progress

SCHEMA: runner.Schema = {
  "method": str,
  **{key: type(value) for key, value in methods.DEFAULTS.items()},
  "search_sequences": int,
  "batch_size": int,
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
    inputs: step directories or `workdir@step`, oldest first where the method
      minds their order.
    output: a new step directory of kind `merged`.
    weights: one per input, for methods that take them.
    overwrite: replace an existing output.
    allow_unrelated: merge checkpoints of different runs or tokenizers, and
      measure on a corpus that has changed since training.
    dry_run: print the plan and stop after the checks.
    progress: called with a stage, inputs read, inputs in all and a note.

  Raises:
    InputError: lists what is wrong with the config, the inputs or the output.
  """
  runner.check_config(config, SCHEMA)
  distributed.check_single_process("merge")
  parameters = {key: config[key] for key in methods.DEFAULTS}
  name = config.method
  found = methods.problems(name, len(inputs), weights, parameters)
  found += [
    f"config.{key} must be positive, got {config[key]}"
    for key in ("search_sequences", "batch_size")
    if config[key] < 1
  ]
  check(found)
  output = epath.Path(output)
  check_output(output, overwrite=overwrite)
  sources = trajectory.open_inputs(inputs)
  base = trajectory.open_inputs([config.base])[0] if config.base else None
  together = [*([base] if base else []), *sources]
  trajectory.check_mergeable(together, allow_unrelated=allow_unrelated)
  if methods.METHODS[name].ordered:
    check(_order_problems(sources))
  abstract = abstract_params(sources[0].metadata)
  mesh = make_mesh(**config.mesh)
  where = shardings(abstract, mesh)
  check_can_make(output.parent)
  fixed = methods.fixed_weights(name, len(inputs), weights, parameters)
  if dry_run:
    print(_plan(name, abstract, sources, base, fixed or weights))
    return
  scorer = None
  if methods.METHODS[name].data:
    scorer = open_scorer(
      sources[-1].metadata,
      mesh,
      batch_size=config.batch_size,
      allow_unrelated=allow_unrelated,
      progress=lambda text: progress("data", 0, 0, text),
    )
  read = [w != 0 for w in fixed] if fixed else [True] * len(sources)
  trees = []
  for source, is_read in zip(sources, read):
    if is_read:
      trees.append(restore_params(source.path, where))
      progress("merge", len(trees), sum(read), source.name)
  if fixed is not None:
    applied = fixed
    merged = weighted_average(trees, [w for w in fixed if w])
  else:
    base_tree = restore_params(base.path, where) if base else None
    applied, merged = _merge(
      config, trees, list(weights), parameters, base_tree, scorer, progress
    )
  save_merged(
    output,
    merged,
    sources,
    applied,
    method=name,
    overwrite=overwrite,
    recipe={
      **{key: parameters[key] for key in methods.METHODS[name].parameters},
      **({"base": identity(base)} if base else {}),
    },
  )
  progress("merge", 0, 0, f"saved {output}")


def _merge(
  config: config_dict.ConfigDict,
  trees: Sequence[Any],
  weights: list[float],
  parameters: dict[str, Any],
  base: Any,
  scorer: Scorer | None,
  progress: Progress,
) -> tuple[list[float], Any]:
  """The weights and the merged tree of a method without fixed weights."""
  name = config.method
  fishers: list[Any] = []
  grams: list[Any] = []
  if scorer is not None:
    split = scorer.on("search", config.search_sequences)
    if name == "fisher":
      held = split.split
      seed = parameters["seed"] if parameters["sampled"] else None
      for number, tree in enumerate(trees, start=1):
        fishers.append(
          diagonal_fisher(
            scorer.graph, tree, held.tokens_NxL1, held.mask_NxL, seed
          )
        )
        progress("fisher", number, len(trees), "")
    elif name == "regmean":
      held = split.split
      for number, tree in enumerate(trees, start=1):
        grams.append(
          layer_grams(scorer.graph, tree, held.tokens_NxL1, held.mask_NxL)
        )
        progress("regmean", number, len(trees), "")
    else:
      found = methods.measured_weights(
        name,
        [split(tree).nats_per_token for tree in trees],
        lambda w: split(weighted_average(trees, w)).nats_per_token,
        parameters,
      )
      assert found is not None
      weights = found
  # Of task vectors all are added whole; of an average each has its share.
  alone = 1.0 if base is not None else 1.0 / len(trees)
  weights = weights or [alone] * len(trees)
  merged = methods.merge_trees(
    name,
    trees,
    weights,
    parameters,
    base=base,
    fishers=fishers,
    grams=grams,
  )
  return weights, merged


def _order_problems(sources: Sequence[Checkpoint]) -> list[str]:
  steps = [source.metadata.step for source in sources]
  if steps == sorted(set(steps)):
    return []
  return [f"the inputs must be given oldest first, got steps {steps}"]


def _plan(
  name: str,
  abstract: Any,
  sources: Sequence[Checkpoint],
  base: Checkpoint | None,
  weights: Sequence[float],
) -> str:
  size = sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in named_leaves(abstract).values()
  )
  shown = [f"{w:.6f}" for w in weights] or [name] * len(sources)
  read = len(sources) + (base is not None)
  if weights:
    read -= sum(w == 0 for w in weights)
  rows = [f"read {human_bytes(size * read)}, write {human_bytes(size)}"]
  rows += [f"  {w}  {source.name}" for w, source in zip(shown, sources)]
  return "\n".join(rows + ([f"  base  {base.name}"] if base else []))


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
    doc=f"{__doc__}{methods.help_text()}",
    configs={"config": None},
    strings={
      "inputs": (None, "step directories or workdir@step, comma-separated"),
      "output": (None, "the step directory to write"),
      "weights": ("", "one number per input, for methods that take them"),
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
