"""Merges that must measure: losses or gradients of each checkpoint."""

import functools
from collections.abc import Sequence
from typing import Any

from etils import epath
from flax import nnx

from jaxmerge.checkpoints import models
from jaxmerge.checkpoints.inputs import DECODER, Checkpoint
from jaxmerge.checkpoints.merged import describe_merged, identity, save_merged
from jaxmerge.checkpoints.model_inputs import as_model, load_params
from jaxmerge.errors import Problems
from jaxmerge.evaluation.evaluator import Setting
from jaxmerge.evaluation.held_out_splits import (
  check_batch,
  open_scorer,
  text_of,
)
from jaxmerge.evaluation.heldout_loss import HeldOutLoss
from jaxmerge.formats.records.metadata import abstract_params, describe_leaves
from jaxmerge.formats.records.provenance import Provenance
from jaxmerge.merging.config import MergeConfig
from jaxmerge.merging.groups import one_group
from jaxmerge.merging.merge_plan import MergePlan, run_streamed
from jaxmerge.merging.resident import choose_placement, open_trees
from jaxmerge.model.config import DecoderConfig
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
from jaxmerge.progress import Progress


def check_measurable(
  sources: Sequence[Checkpoint],
  config: MergeConfig,
  *,
  allow_unrelated: bool,
) -> None:
  """Refuses what cannot be measured; tokenizes nothing and reads no tensor.

  Raises:
    InputError: a source is of no known model, or it cannot be scored.
  """
  problems = Problems()
  models = [problems(functools.partial(as_model, s)) for s in sources]
  mesh = problems(lambda: make_mesh(**vars(config.mesh)))
  if mesh is not None:
    problems(functools.partial(check_batch, config.batch_size, mesh))
  latest = models[-1]
  if latest is not None:
    text = latest.metadata, config.data, config.seq_len, allow_unrelated
    problems(lambda: text_of(*text))
  problems.check()


def run_measured(
  plan: MergePlan,
  config: MergeConfig,
  output: epath.PathLike,
  *,
  overwrite: bool,
  allow_unrelated: bool,
  progress: Progress,
) -> None:
  """Merges checkpoints by a method that needs the search split.

  Args:
    plan: of such a method.
    config, overwrite, allow_unrelated: of the merge verb.
    output: the new directory, of the inputs' format.
    progress: told how far the work is.

  Raises:
    InputError: a source is damaged or cannot be measured, or the output cannot
      be written.
  """
  sources = [as_model(source) for source in plan.sources]
  mesh = make_mesh(**vars(config.mesh))
  where = shardings(abstract_params(sources[0].metadata), mesh)
  scorer = open_scorer(
    Setting.of(sources[-1].metadata, mesh, config, allow_unrelated),
    lambda text: progress.note("data", text),
  )
  split = scorer.on("search", config.search_sequences)
  if plan.method.acts == "on losses":
    weights = _weights_by_loss(plan, sources, split, where)
    found = plan._replace(weights=weights, is_average=True)
    run_streamed(found, output, overwrite=overwrite, progress=progress)
    return
  trees = []
  for source in sources:
    trees.append(load_params(source, where))
    progress.stage("merge", len(trees), len(sources), source.name)
  merged = _by_answers(plan, trees, scorer.graph, split, progress)
  if plan.sources[0].layout == DECODER:
    save_merged(output, merged, sources, plan.provenance, overwrite=overwrite)
  else:
    _export(output, merged, sources, plan.provenance, overwrite=overwrite)


def _export(
  output: epath.PathLike,
  merged: Any,
  sources: Sequence[Checkpoint],
  provenance: Provenance,
  *,
  overwrite: bool,
) -> None:
  """Saves a Hugging Face directory."""
  hashes = [identity(source) for source in sources]
  metadata = describe_merged(
    sources, provenance, describe_leaves(merged), hashes
  )
  saved = models.SavedModel(
    merged,
    DecoderConfig.from_dict(metadata.model),
    metadata.tokenizer,
    metadata,
    metadata.files,
  )
  models.save(saved, output, "hf", overwrite=overwrite)


def _weights_by_loss(
  plan: MergePlan,
  sources: Sequence[Checkpoint],
  split: HeldOutLoss,
  where: Any,
) -> list[float]:
  """Weights of a method that needs losses; of trees where they fit."""
  place = choose_placement(
    sources, where, merged_trees=2, memory_budget_gb=plan.budget / 2**30
  )
  trees = open_trees(sources, where, place.where)
  groups = one_group(where)
  return plan.method.function(
    [split.score(trees[k]).mean for k in range(len(trees))],
    lambda w: split.score(trees.average([w], groups)).mean,
    plan.knobs,
  )


def _by_answers(
  plan: MergePlan,
  trees: Sequence[Any],
  graph: nnx.GraphDef,
  split: HeldOutLoss,
  progress: Progress,
) -> Any:
  """The merged tree of a method that asks each model."""
  method, knobs, held = plan.method, plan.knobs, split.split
  assert method.ask is not None
  answers: list[Any] = []
  for tree in trees:
    answers.append(
      method.ask(graph, tree, held.tokens_NxL1, held.mask_NxL, knobs)
    )
    progress.stage(method.name, len(answers), len(trees))
  weights_K = method.usable(plan.weights_K, knobs)
  return method.function(trees, answers, weights_K, knobs)
