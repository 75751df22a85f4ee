"""Tasks that a run's parameters are scored on while it trains.

The run takes nothing from the scores: with and without them it is the same,
bit for bit.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from jaxmerge.config_fields import key
from jaxmerge.data.mixture import Mixture
from jaxmerge.evaluation.speeds import rounded
from jaxmerge.evaluation.tasks.config import HELD_OUT, TasksConfig
from jaxmerge.evaluation.tasks.task import ChoiceItem
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.training.loop import Plan
from jaxmerge.training.metrics import SCORED

if TYPE_CHECKING:
  from jaxmerge.evaluation.config import EvaluateConfig
  from jaxmerge.evaluation.ready_tasks import TaskScores

_MOST_TOLD = 4
_HELD_OUT_HELP = "of the report split that 'heldout' scores, at most"


@dataclasses.dataclass(frozen=True)
class TaskScoringConfig(TasksConfig):
  """The `scoring` section of a run's config."""

  tasks: tuple[str, ...] = key(
    (),
    "scored while the run trains: 'heldout' (its report split), or "
    "type:argument, as 'mmlu:DIR' or 'pairs:FILE.jsonl'; (): none",
  )
  every: int = key(
    0,
    "steps between scores, a multiple of save_every; 0: at each checkpoint; "
    "the last step is scored too",
    at_least=0,
  )
  sequences: int = key(128, _HELD_OUT_HELP, at_least=1)
  use_cache: bool = key(
    True, "keep scores for evaluate, and take those that it has kept"
  )

  def problems(self, prefix: str) -> list[str]:
    """Lists keys that say nothing; files of tasks are read by `items`."""
    problems = super().problems(prefix)
    if self.every and not self.tasks:
      problems.append(f"{prefix}every means nothing without {prefix}tasks")
    return problems

  @functools.cached_property
  def items(self) -> Mapping[str, Sequence[ChoiceItem]]:
    """The items of the tasks that are questions, by the tasks' texts.

    Raises:
      InputError: lists what is wrong with the tasks and with all files.
    """
    return self.questions.read()

  def is_due(self, step: int, plan: Plan) -> bool:
    """Says whether a step that is saved is scored."""
    return step % (self.every or plan.save_every) == 0 or step == plan.num_steps

  def evaluation(self, batch_size: int) -> "EvaluateConfig":
    """The config by which evaluate would score the same."""
    # Optuna comes with it, a second that other runs need not wait for.
    from jaxmerge.evaluation.config import EvaluateConfig

    asked = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    del asked["every"]
    return EvaluateConfig(**asked, batch_size=batch_size)


def scoring_problems(config: Any, prefix: str) -> list[str]:
  """Says where a PretrainConfig scores between its checkpoints."""
  every, save_every = config.scoring.every, config.save_every
  if save_every < 1 or every % save_every == 0:
    return []
  return [
    f"{prefix}scoring.every {every} is not a multiple of {prefix}save_every "
    f"{save_every}: what is scored can be evaluated again"
  ]


def scorer(
  config: TaskScoringConfig,
  plan: Plan,
  metadata: Metadata,
  mesh: Mesh,
  corpus: Mixture,
  batch_size: int,
  tell: Callable[[str], None],
) -> Callable[[int, Any], dict[str, float]]:
  """Opens the tasks of a run.

  In a job all processes call it, and what it returns.

  Args:
    metadata: of a checkpoint of the run.
    corpus: of the run.
    batch_size: sequences scored at once, over all devices.
    tell: told of scores in a line.

  Returns:
    A function of a step and its parameters, which gives scores for
    metrics.jsonl: "TABLE|METRIC", all that are finite; none where none is due.

  Raises:
    InputError: lists what cannot be scored.
  """
  if not config.tasks:
    return lambda step, params: {}
  from jaxmerge.evaluation.open_tasks import OpenTasks

  evaluation = config.evaluation(batch_size)
  tasks = OpenTasks(evaluation, metadata, mesh, corpus, config.items)

  def score(step: int, params: Any) -> dict[str, float]:
    if not config.is_due(step, plan):
      return {}
    tables = tasks.score(params)
    tell(f"step {step}: {_told(tables)}")
    return _numbers(tables)

  return score


def _numbers(tables: Sequence["TaskScores"]) -> dict[str, float]:
  found = {
    f"{table.name}{SCORED}{name}": value
    for table in tables
    for metric, [score] in table.metrics.items()
    for name, value in {metric: score.mean, **score.extras}.items()
  }
  return {name: value for name, value in found.items() if math.isfinite(value)}


def _told(tables: Sequence["TaskScores"]) -> str:
  """The scores that decide, of the first tables."""
  parts = [
    f"{table.name} {table.first.mean:.4f} {table.first.unit}"
    for table in tables[:_MOST_TOLD]
  ]
  if more := len(tables) - len(parts):
    parts.append(f"{more} more")
  return ", ".join(parts)


def plan_rows(
  config: TaskScoringConfig,
  plan: Plan,
  mesh: Mesh,
  batch_size: int,
  metadata: Metadata | None,
  *,
  is_here: bool,
) -> dict[str, str]:
  """Says in a dry run what is scored, how often, and how long that takes.

  Args:
    metadata: as scorer's; None where the tokenizer is not known yet.
    is_here: the mesh is of devices that are there.

  Raises:
    InputError: items do not fit the model.
  """
  if not config.tasks:
    return {}
  rows = {name: f"{len(each):,} items" for name, each in config.items.items()}
  if config.has_held_out:
    rows = {HELD_OUT: f"{config.sequences:,} sequences at most"} | rows
  saved = range(plan.save_every, plan.num_steps + 1, plan.save_every)
  steps = {s for s in [*saved, plan.num_steps] if s > plan.start}
  times = sum(config.is_due(step, plan) for step in steps)
  told = f"at {times} of {len(steps)} checkpoints"
  if metadata is not None:
    from jaxmerge.evaluation.open_tasks import sizes

    evaluation = config.evaluation(batch_size)
    found = sizes(evaluation, metadata, mesh, config.items)
    rows = {
      n: f"{text}, {found.tokens[n]:,} tokens" for n, text in rows.items()
    }
    if is_here:
      told += f", about {rounded(found.seconds())} s each, compiling apart"
  return {"scores": told, **rows}
