"""Tasks that stay open, for parameters that are in memory, as of a run."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from jaxmerge.checkpoints.inputs import PARAMS, Checkpoint
from jaxmerge.data.mixture import Mixture
from jaxmerge.evaluation import score_cache
from jaxmerge.evaluation.comparison import on_split
from jaxmerge.evaluation.config import EvaluateConfig
from jaxmerge.evaluation.evaluator import Setting
from jaxmerge.evaluation.evaluators.heldout_loss import Knobs, heldout_loss
from jaxmerge.evaluation.held_out_splits import Scorer
from jaxmerge.evaluation.ready_tasks import HeldOutTask, ReadyTask, TaskScores
from jaxmerge.evaluation.scored_models import Models
from jaxmerge.evaluation.speeds import speeds
from jaxmerge.evaluation.task_scores import (
  Questions,
  keys,
  open_each,
  open_questions,
)
from jaxmerge.evaluation.tasks.config import HELD_OUT
from jaxmerge.formats.records.metadata import Metadata, describe_leaves
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.distributed import on_every_process


class OpenTasks:
  """Scores parameters of one model, as evaluate does a checkpoint of it.

  What evaluate has kept of the same parameters is not scored again, and the
  other way round. In a job all processes make it and call it.

  Args:
    config: the tasks, and how they are scored; its mesh and corpora are not
      looked at.
    metadata: of a checkpoint of the model, whose leaves are not looked at.
    mesh: on which the parameters lie.
    corpus: of "heldout".
    questions: the items of the other tasks, by the tasks' texts.

  Raises:
    InputError: lists what cannot be scored.
  """

  def __init__(
    self,
    config: EvaluateConfig,
    metadata: Metadata,
    mesh: Mesh,
    corpus: Mixture,
    questions: Questions,
  ):
    self._models = _models(config, metadata, mesh)
    self._use_cache = config.use_cache

    def opened() -> list[ReadyTask]:
      tasks: list[ReadyTask] = []
      if config.has_held_out:
        scorer = _scorer(config, metadata, mesh, corpus)
        tasks.append(HeldOutTask(HELD_OUT, {0: on_split(config, scorer)}))
      tasks += open_questions(config, self._models, questions)
      open_each((task, 0) for task in tasks)
      return tasks

    self._tasks = on_every_process(opened)

  def score(self, params: Any) -> list[TaskScores]:
    """Scores parameters, which are left as they are: a table or more a task."""
    keys = self._keys(params)
    found = []
    for task, key in zip(self._tasks, keys, strict=True):
      measured = score_cache.find(key) if key else None
      if measured is None:
        measured = task.measure(0, params)
        if key:
          score_cache.keep(key, measured)
      found += task.scores([0], [measured])
    return found

  def _keys(self, params: Any) -> Sequence[str]:
    if not self._use_cache:
      return [""] * len(self._tasks)
    [checkpoint] = self._models.checkpoints
    leaves = {PARAMS: describe_leaves(params)}
    metadata = dataclasses.replace(checkpoint.metadata, leaves=leaves)
    known = dataclasses.replace(checkpoint, metadata=metadata)
    return keys(self._tasks, self._models, 0, known)


class Sizes(NamedTuple):
  """Says what it takes to score one model on tasks.

  Attributes:
    tokens: of each task, a prompt once for all its choices.
    parameters: of the model.
  """

  tokens: dict[str, int]
  parameters: int

  def seconds(self) -> float:
    """Measures the devices for the time that it takes, compiling apart."""
    total = sum(self.tokens.values())
    return speeds().forward_seconds(self.parameters, total)


def sizes(
  config: EvaluateConfig, metadata: Metadata, mesh: Mesh, questions: Questions
) -> Sizes:
  """Counts the tokens of tasks; opens no text.

  Args:
    config, metadata, mesh, questions: as of OpenTasks.

  Raises:
    InputError: items do not fit the model.
  """
  models = _models(config, metadata, mesh)
  tokens = {}
  if config.has_held_out:
    tokens[HELD_OUT] = config.sequences * metadata.data["seq_len"]
  for task in open_questions(config, models, questions):
    tokens[task.name] = task.tokens(0)
  _, params = abstract_decoder(DecoderConfig.from_dict(metadata.model))
  leaves = jax.tree.leaves(params)
  return Sizes(tokens, sum(math.prod(leaf.shape) for leaf in leaves))


def _models(config: EvaluateConfig, metadata: Metadata, mesh: Mesh) -> Models:
  """The one model, of kind 0."""
  setting = Setting(metadata, mesh, config.batch_size)
  checkpoint = Checkpoint(epath.Path(), "the run", metadata)
  return Models([checkpoint], [0], {0: setting}, is_one_tokenizer=True)


def _scorer(
  config: EvaluateConfig, metadata: Metadata, mesh: Mesh, corpus: Mixture
) -> Scorer:
  """As held_out_splits.open_scorer, of a corpus that is open."""
  model = DecoderConfig.from_dict(metadata.model)
  graph, _ = abstract_decoder(model)
  return Scorer(
    graph,
    model.vocab_size,
    mesh,
    corpus,
    metadata.data["seq_len"],
    config.batch_size,
    "",
    lambda scorer, held: heldout_loss(scorer, held, Knobs()),
  )
