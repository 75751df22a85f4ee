"""Scores many checkpoints on many tasks: weights streamed, results kept."""

import functools
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax

from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.model_inputs import load_params
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import Damaged, Problems
from jaxmerge.evaluation import score_cache
from jaxmerge.evaluation.comparison import Text, open_texts
from jaxmerge.evaluation.config import EvaluateConfig
from jaxmerge.evaluation.evaluator import Setting
from jaxmerge.evaluation.evaluators.choices import Choices
from jaxmerge.evaluation.held_out_splits import tokenizer_of
from jaxmerge.evaluation.ready_tasks import (
  ChoiceTask,
  Choosing,
  HeldOutTask,
  ReadyTask,
  TaskScores,
)
from jaxmerge.evaluation.score_cache import Measured
from jaxmerge.evaluation.scored_models import Models, content_of, context_of
from jaxmerge.evaluation.tasks.task import ChoiceItem
from jaxmerge.formats.records.metadata import canonical_json, hash_text
from jaxmerge.formats.records.provenance import has_seen
from jaxmerge.model.config import DecoderConfig
from jaxmerge.parallel.distributed import on_every_process
from jaxmerge.progress import Progress

# Of what is kept: another one where scores of the same model would differ.
_VERSION = 1

Questions = Mapping[str, Sequence[ChoiceItem]]


def scores(
  config: EvaluateConfig,
  models: Models,
  questions: Questions,
  progress: Progress,
  *,
  allow_seen: bool = False,
  named: Container[str],
) -> tuple[list[TaskScores], list[Checkpoint]]:
  """Scores each checkpoint on each task; all processes of a job call it.

  One checkpoint is on the devices at a time, and what is known of one from
  before is not scored again.

  Args:
    questions: the items of the tasks that are questions, by the tasks' texts.
    allow_seen: score merges on what a search has chosen them by, too.
    named: checkpoints that must be whole; damaged others are told and left out.

  Returns:
    The tables, and the checkpoints that they are of.

  Raises:
    InputError: a model does not fit the devices, a text cannot be opened,
      items do not fit a model or have been seen, or checkpoints are damaged.
  """
  models.place(config.memory_budget_gb)

  def open_all() -> list[ReadyTask]:
    texts = open_held_out(config, models, progress, allow_seen)
    return [*texts, *open_questions(config, models, questions)]

  tasks = on_every_process(open_all)
  found = _measured(config, tasks, models, progress, named)
  kinds = [models.kinds[number] for number in found]
  tables = [
    table
    for task, each in zip(tasks, zip(*found.values(), strict=True), strict=True)
    for table in task.scores(kinds, each)
  ]
  return tables, [models.checkpoints[number] for number in found]


def open_held_out(
  config: EvaluateConfig,
  models: Models,
  progress: Progress,
  allow_seen: bool = False,
) -> list[HeldOutTask]:
  """Opens the text of each corpus of the config.

  Raises:
    InputError: as comparison.open_texts, of all corpora, or a merge has been
      chosen by the split.
  """
  problems = Problems()
  found = []
  for name, corpus in config.corpora.items():
    settings = {
      kind: setting._replace(data=corpus.data)
      for kind, setting in models.settings.items()
    }
    opened = problems(
      functools.partial(
        open_texts,
        corpus,
        settings,
        models.is_one_tokenizer,
        functools.partial(progress.note, "data"),
      )
    )
    if opened is not None:
      found.append(HeldOutTask(name, opened))
    if opened is not None and not allow_seen:
      problems += _seen(config, models, opened)
  problems.check()
  return found


def _seen(
  config: EvaluateConfig, models: Models, texts: Mapping[int, Text]
) -> list[str]:
  return [
    f"{checkpoint.name}: its weights were searched on the {config.split} split "
    "of this corpus, so its score says nothing; choose another config.split, "
    "or accept it with --allow_seen"
    for kind, checkpoint in zip(models.kinds, models.checkpoints, strict=True)
    if has_seen(checkpoint.metadata, texts[kind].content, config.split)
  ]


def open_questions(
  config: EvaluateConfig, models: Models, questions: Questions
) -> list[ChoiceTask]:
  """Makes a task of each set of questions; tokenizes nothing yet.

  Raises:
    InputError: a model has no tokenizer, or says not how long texts may be.
  """
  if not questions:
    return []
  problems = Problems()
  contexts: dict[int, int] = {}
  for kind, setting in models.settings.items():
    checkpoint = models.checkpoints[kind]
    problems(functools.partial(tokenizer_of, setting.metadata))
    context = problems(
      functools.partial(context_of, checkpoint, config.seq_len)
    )
    contexts[kind] = context or 0
  problems.check()
  return [
    ChoiceTask(name, items, models.settings, contexts, _choices)
    for name, items in questions.items()
  ]


def _choices(
  setting: Setting,
  items: Sequence[ChoiceItem],
  tokenizer: Tokenizer,
  context: int,
) -> Choosing:
  return Choices(
    DecoderConfig.from_dict(setting.metadata.model),
    setting.mesh,
    items,
    tokenizer,
    context=context,
    batch_size=setting.batch_size,
  )


class _Work(NamedTuple):
  """Says what to measure of one checkpoint, and under which keys it is kept.

  Attributes:
    keys: of each task, "" where nothing is kept.
    known: by key.
  """

  keys: Sequence[str]
  known: dict[str, Measured]

  @property
  def missing(self) -> list[int]:
    """The tasks of which nothing is known."""
    return [n for n, key in enumerate(self.keys) if key not in self.known]


def _measured(
  config: EvaluateConfig,
  tasks: Sequence[ReadyTask],
  models: Models,
  progress: Progress,
  named: Container[str],
) -> dict[int, list[Measured]]:
  """Gives what each task measures, by the number of each whole checkpoint."""
  known: dict[str, Measured] = {}
  works = [
    _Work([""] * len(tasks), known)
    if not config.use_cache
    else _Work(keys(tasks, models, kind, checkpoint), known)
    for kind, checkpoint in zip(models.kinds, models.checkpoints, strict=True)
  ]
  for key in {key: None for work in works for key in work.keys if key}:
    if (kept := score_cache.find(key)) is not None:
      known[key] = kept
  total = len(models.checkpoints) * len(tasks)
  if left := total - sum(len(work.missing) for work in works):
    progress.note("evaluate", f"{left} of {total} scores are from the cache")
  _open(tasks, models, works)
  found = {}
  damages: list[Damaged] = []
  for number, work in enumerate(works):
    try:
      found[number] = _of_one(tasks, models, number, work, progress)
    except Damaged as damage:
      if models.checkpoints[number].name in named:
        raise
      progress.note("evaluate", f"left out: {damage.problems[0]}")
      damages.append(damage)
  if not found:
    raise damages[0]
  return found


def keys(
  tasks: Sequence[ReadyTask],
  models: Models,
  kind: int,
  checkpoint: Checkpoint,
) -> list[str]:
  """Under which each task keeps what it measures of a checkpoint of a kind."""
  model = models.settings[kind].metadata.model
  params = content_of(checkpoint)
  precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
  known = [_VERSION, jax.default_backend(), precision, params, model]
  contents = [task.content(kind) for task in tasks]
  return [
    content and hash_text(canonical_json([*known, content]))
    for content in contents
  ]


def _open(
  tasks: Sequence[ReadyTask], models: Models, works: Sequence[_Work]
) -> None:
  """Opens what is to be measured, in each process."""
  wanted = {
    (n, kind): None
    for kind, work in zip(models.kinds, works, strict=True)
    for n in work.missing
  }
  on_every_process(lambda: open_each((tasks[n], kind) for n, kind in wanted))


def open_each(wanted: Iterable[tuple[ReadyTask, int]]) -> None:
  """Opens tasks for kinds of models; InputError lists all that cannot be."""
  problems = Problems()
  for task, kind in wanted:
    problems(functools.partial(task.open, kind))
  problems.check()


def _of_one(
  tasks: Sequence[ReadyTask],
  models: Models,
  number: int,
  work: _Work,
  progress: Progress,
) -> list[Measured]:
  """Measures one checkpoint; its parameters are gone when this returns."""
  checkpoint, kind = models.checkpoints[number], models.kinds[number]
  found: dict[int, Measured] = {}
  missing = work.missing
  params = None
  if missing:
    params = load_params(checkpoint, models.settings[kind].shardings)
  total = len(models.checkpoints) * len(tasks)
  for n, (task, key) in enumerate(zip(tasks, work.keys, strict=True)):
    if n in missing:
      found[n] = task.measure(kind, params)
      if key:
        work.known[key] = found[n]
        score_cache.keep(key, found[n])
    note = (
      checkpoint.name if len(tasks) == 1 else f"{checkpoint.name} {task.name}"
    )
    progress.stage("evaluate", number * len(tasks) + n + 1, total, note)
  return [found.get(n) or work.known[key] for n, key in enumerate(work.keys)]
