"""Merges that must measure: losses or gradients of each checkpoint."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath
from flax import nnx

from jaxmerge.checkpoints.inputs import DECODER, Checkpoint
from jaxmerge.checkpoints.merged import identity, save_merged
from jaxmerge.checkpoints.model_inputs import as_model
from jaxmerge.data.config import CorpusConfig
from jaxmerge.data.heldout import HeldOut
from jaxmerge.errors import Problems, check
from jaxmerge.evaluation.domain import groups_of_models
from jaxmerge.evaluation.evaluator import Evaluator, Setting
from jaxmerge.evaluation.evaluators.heldout_loss import heldout_loss
from jaxmerge.evaluation.held_out_splits import (
  Scorer,
  check_batch,
  open_scorer,
  text_of,
)
from jaxmerge.evaluation.placing import place_trees
from jaxmerge.evaluation.solved_merge import SolvedMerge, expense
from jaxmerge.files import human_bytes
from jaxmerge.formats.integrity.norms import norms
from jaxmerge.formats.records.provenance import seen_items
from jaxmerge.merging.groups import one_group
from jaxmerge.merging.merge_plan import MergePlan, sized, with_groups
from jaxmerge.merging.resident import (
  ON_DEVICES,
  Placement,
  Trees,
  load_trees,
  open_trees,
)
from jaxmerge.merging.streamed_merge import run_streamed
from jaxmerge.merging.streaming import too_large
from jaxmerge.parallel.distributed import Team, on_every_process
from jaxmerge.parallel.exchange import check_same
from jaxmerge.parallel.mesh import MeshConfig, make_mesh
from jaxmerge.progress import Progress
from jaxmerge.simplex.bounds import Bounds

# Finds the weights of a merge, in the first process of a job.
Weigh = Callable[[], MergePlan]


def check_measurable(
  sources: Sequence[Checkpoint],
  sizes: MeshConfig,
  batch_size: int,
  data: CorpusConfig,
  seq_len: int,
  allow_unrelated: bool,
  layer_groups: str = "",
) -> Setting:
  """Refuses what cannot be measured; tokenizes nothing.

  The arguments behind the sizes of the mesh are those of the Setting that it
  returns, and the text of the groups that are to have weights.

  Raises:
    InputError: a source is of no known model, it cannot be scored, or it has no
      such groups.
  """
  problems = Problems()
  models = [problems(functools.partial(as_model, s)) for s in sources]
  mesh = problems(lambda: make_mesh(**vars(sizes)))
  if mesh is not None:
    problems(functools.partial(check_batch, batch_size, mesh))
  if (latest := models[-1]) is not None:
    placed = latest.metadata, mesh or make_mesh()  # any will do for the text
    setting = Setting(*placed, batch_size, data, seq_len, allow_unrelated)
    problems(lambda: text_of(setting))
    problems(lambda: groups_of_models([latest], layer_groups))
  problems.check()
  return setting


def expected(
  plan: MergePlan, setting: Setting, sequences: int
) -> Iterator[str]:
  """Says what a method by derivatives costs beside reading, a line a fact.

  In a job all processes call it.

  Raises:
    InputError: what it makes does not fit on the devices.
  """
  if plan.method.acts != "on derivatives":
    return
  sources, knobs = [as_model(s) for s in plan.sources], plan.knobs
  place = _place(sources, setting, derivatives=True)
  yield f"trees {place.where}, {human_bytes(place.needed)} in all"
  yield expense(
    sources,
    knobs.layer_groups,
    sequences=sequences,
    on_devices=place.where == ON_DEVICES,
  ).told
  bounds = Bounds(negative=knobs.negative)
  yield f"weights of each group {bounds.reach}"


def run_measured(
  plan: MergePlan,
  setting: Setting,
  sequences: int,
  output: epath.PathLike,
  *,
  overwrite: bool,
  progress: Progress,
) -> None:
  """Merges checkpoints by a method that needs the search split.

  The setting is that of check_measurable; so many sequences are measured. All
  processes of a job call it.

  Raises:
    InputError: a source is damaged or cannot be measured, or the output cannot
      be written.
  """
  sources = [as_model(source) for source in plan.sources]
  scorer = on_every_process(
    lambda: open_scorer(
      setting, lambda text: progress.note("data", text), heldout_loss
    )
  )
  check_same(lambda: _known(sources, scorer))
  held = scorer.sequences("search", sequences)
  measured = len(held.tokens_NxL1)
  plan = plan._replace(seen=[seen_items(scorer.content, "search", measured)])
  if plan.method.acts != "on models":
    split = scorer.build(scorer, held)
    team = Team()
    if plan.method.acts == "on losses":
      weigh = _by_losses(plan, sources, split, setting, team)
    else:
      weigh = _by_derivatives(plan, sources, split, setting, team, progress)

    def merge() -> None:
      found = sized(weigh()._replace(is_average=True), output)
      run_streamed(found, output, overwrite=overwrite, progress=progress)

    team.lead(merge)
    return
  trees = []
  for source, tree in zip(sources, load_trees(sources, setting.shardings)):
    trees.append(tree)
    progress.stage("merge", len(trees), len(sources), source.name)
  merged = _by_answers(plan, trees, scorer.graph, held, progress)
  if plan.dtype:
    merged = jax.tree.map(lambda leaf: leaf.astype(plan.dtype), merged)
    check(too_large(n) for n, norm in norms(merged).items() if norm is None)
  save_merged(
    output,
    merged,
    sources,
    plan.provenance,
    format="orbax" if plan.sources[0].layout == DECODER else "hf",
    overwrite=overwrite,
  )


def _known(sources: Sequence[Checkpoint], scorer: Scorer) -> dict[str, str]:
  """Names what is measured, and on which text."""
  return {"text": scorer.content, **{s.name: identity(s) for s in sources}}


def _by_losses(
  plan: MergePlan,
  sources: Sequence[Checkpoint],
  split: Evaluator,
  setting: Setting,
  team: Team,
) -> Weigh:
  """Tells losses of sources and their merges; of trees where they fit."""
  trees = _trees(sources, setting)
  groups = one_group(setting.shardings)
  team.add("alone", lambda k: split.score(trees[k]).mean)
  team.add("merged", lambda w: split.score(trees.average([w], groups)).mean)

  def weigh() -> MergePlan:
    weights = plan.method.function(
      [team.do("alone", k) for k in range(len(sources))],
      lambda weights_K: team.do("merged", weights_K),
      plan.knobs,
    )
    return plan._replace(weights=weights)

  return weigh


def _by_derivatives(
  plan: MergePlan,
  sources: Sequence[Checkpoint],
  split: Evaluator,
  setting: Setting,
  team: Team,
  progress: Progress,
) -> Weigh:
  """Weights of groups, by derivatives of the loss by them."""
  knobs = plan.knobs
  trees = _trees(sources, setting, derivatives=True)
  solved = SolvedMerge(
    sources, trees, split, knobs.layer_groups, knobs.negative, team
  )

  def weigh() -> MergePlan:
    rows = plan.method.function(lambda: solved.weights(progress), knobs)
    return with_groups(plan, rows)

  return weigh


def _trees(
  sources: Sequence[Checkpoint], setting: Setting, *, derivatives: bool = False
) -> Trees:
  place = _place(sources, setting, derivatives=derivatives)
  return open_trees(sources, setting.shardings, place.where)


def _place(
  sources: Sequence[Checkpoint], setting: Setting, *, derivatives: bool
) -> Placement:
  budget_gb = setting.memory_budget_gb
  return place_trees(
    sources, setting.shardings, budget_gb, derivatives=derivatives
  )


def _by_answers(
  plan: MergePlan,
  trees: Sequence[Any],
  graph: nnx.GraphDef,
  held: HeldOut,
  progress: Progress,
) -> Any:
  """The merged tree of a method that asks each model."""
  method, knobs = plan.method, plan.knobs
  assert method.ask is not None
  answers: list[Any] = []
  for tree in trees:
    answers.append(
      method.ask(graph, tree, held.tokens_NxL1, held.mask_NxL, knobs)
    )
    progress.stage(method.name, len(answers), len(trees))
  weights_K = method.usable(plan.weights_K, knobs)
  return method.function(trees, answers, weights_K, knobs)
