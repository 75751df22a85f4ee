"""Several tasks as one objective: the weighted sum of their scores.

N items of all tasks, T tasks, K checkpoints.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.errors import Problems
from jaxmerge.evaluation import choice_scores
from jaxmerge.evaluation.evaluator import (
  Evaluator,
  EvaluatorRecord,
  Opened,
  Resumable,
  Setting,
)
from jaxmerge.evaluation.evaluators.choices import Choices
from jaxmerge.evaluation.held_out_splits import check_batch, tokenizer_of
from jaxmerge.evaluation.score import (
  Score,
  WeightedSum,
  direction_of_sum,
  weighted_sum,
)
from jaxmerge.evaluation.task_config import HELD_OUT, METRICS, Goal
from jaxmerge.evaluation.tasks.splits import Splits
from jaxmerge.evaluation.tasks.task import ChoiceItem
from jaxmerge.formats.records.metadata import canonical_json, hash_text
from jaxmerge.formats.records.provenance import seen_hashes, seen_items
from jaxmerge.model.config import DecoderConfig

# Of its record, and so of the identity of studies.
NAME = "tasks"


class WeightedTasks:
  """Scores parameters on T tasks; it is an Evaluator.

  Args:
    goal: of the search.
    parts: an evaluator of each task; of questions Choices.
  """

  def __init__(self, goal: Goal, parts: Sequence[Evaluator]):
    self._goal = goal
    self._parts = parts
    self._part_N: np.ndarray | None = None

  def score(self, params: Any, upto: int | None = None) -> WeightedSum:
    """The weighted sum, of the first items alone if so many are wanted.

    Of each task as many as its share is; a task whose items come in batches
    costs whole ones.
    """
    if upto is None or self._part_N is None:
      found = self._sum([part.score(params) for part in self._parts])
      self._part_N = found.part_N
      return found
    return self._first(
      upto, lambda t, count: self._parts[t].score(params, count)
    )

  def extend(self, params: Any, known: Score, upto: int) -> WeightedSum:
    """As score, without the items of which an earlier call gave `known`."""
    assert isinstance(known, WeightedSum)

    def further(t: int, count: int) -> Score:
      part = self._parts[t]
      if isinstance(part, Resumable):
        return part.extend(params, known.of_part(t), count)
      return part.score(params, count)

    return self._first(upto, further)

  def _first(
    self, upto: int, score: Callable[[int, int], Score]
  ) -> WeightedSum:
    """The first items of the whole sum, one of each task at least.

    Args:
      score: given a task and a count, of so many of its items or a few more.
    """
    assert self._part_N is not None, "no call has scored all items"
    part_N = self._part_N[: max(upto, len(self._parts))]
    counts = np.bincount(part_N, minlength=len(self._parts)).tolist()
    found = [score(t, count).first(count) for t, count in enumerate(counts)]
    return self._sum(found, part_N)

  def by_metric(self, params: Any) -> dict[str, WeightedSum]:
    """The sum with each metric of questions, for the price of one."""
    found = [
      part.scores(params)
      if isinstance(part, Choices)
      else dict.fromkeys(METRICS, part.score(params))
      for part in self._parts
    ]
    return {
      metric: self._sum([scores[metric] for scores in found])
      for metric in METRICS
    }

  def _sum(
    self, scores: Sequence[Score], part_N: np.ndarray | None = None
  ) -> WeightedSum:
    return weighted_sum(self._goal.tasks, scores, self._goal.weights, part_N)


class SplitTasks(NamedTuple):
  """The items of a search's tasks, ready to be scored; an Opened.

  Attributes:
    goal: of the search.
    questions: the splits of each task of questions, by its text.
    setting: of the models.
    context: the positions that their texts may take.
    held_out: the corpus, where it is a task too.
  """

  goal: Goal
  questions: Mapping[str, Splits]
  setting: Setting
  context: int
  held_out: Opened | None

  @property
  def source(self) -> str:
    """Names the tasks for people, and the corpus."""
    held = self.held_out.source if self.held_out else ""
    names = (
      f"{name} ({held})" if name == HELD_OUT else name
      for name in self.goal.tasks
    )
    return ", ".join(names)

  @property
  def content(self) -> str:
    """The hash of all items in their splits, wherever their files lie."""
    held = self.held_out.content if self.held_out else ""
    known = [
      held if name == HELD_OUT else self.questions[name]
      for name in self.goal.tasks
    ]
    return hash_text(canonical_json([self.context, known]))

  def items(self, split: str, name: str) -> Sequence[ChoiceItem]:
    """Those of a task of questions that are scored."""
    return self.goal.taken(self.questions[name], split)

  def on(self, split: str, count: int) -> WeightedTasks:
    """The evaluator of a split, of so many sequences of held-out text."""
    problems = Problems()
    parts = []
    for name in self.goal.tasks:
      if name == HELD_OUT and self.held_out is not None:
        open_part: Callable[[], Evaluator] = functools.partial(
          self.held_out.on, split, count
        )
      else:
        items = self.items(split, name)
        open_part = functools.partial(
          _choices, self.goal, self.setting, self.context, name, items
        )
      part = problems(open_part)
      parts += [part] if part is not None else []
    problems.check()
    return WeightedTasks(self.goal, parts)

  def seen(self, score: Score) -> list[dict[str, Any]]:
    """Records of the items by which a merge is chosen.

    Args:
      score: on the search split.
    """
    found = []
    if self.held_out is not None:
      assert isinstance(score, WeightedSum)
      count = np.sum(score.part_N == self.goal.tasks.index(HELD_OUT))
      found.append(seen_items(self.held_out.content, "search", int(count)))
    hashes = [
      i.hash for name in self.questions for i in self.items("search", name)
    ]
    return [*found, seen_hashes(hashes)]


def _choices(
  goal: Goal,
  setting: Setting,
  context: int,
  name: str,
  items: Sequence[ChoiceItem],
) -> Choices:
  with choice_scores.naming(name):
    return Choices(
      DecoderConfig.from_dict(setting.metadata.model),
      setting.mesh,
      items,
      tokenizer_of(setting.metadata),
      context=context,
      batch_size=setting.batch_size,
      metric=goal.metric,
    )


def tasks_evaluator(
  goal: Goal,
  held_out: EvaluatorRecord,
  questions: Mapping[str, Splits],
  context: int,
  sequences: int,
) -> EvaluatorRecord:
  """The record of an evaluator of a search's tasks.

  Its `check` gives the tokens of a trial, not of an item.

  Args:
    goal: of the search.
    held_out: evaluates the held-out text, where that is a task, in so many
      sequences.
    questions: the splits of the others, by their texts.
    context: the positions that texts of the models may take.
  """

  def check(setting: Setting) -> int:
    problems = Problems()
    problems(functools.partial(check_batch, setting.batch_size, setting.mesh))
    total = 0
    if goal.held_out:
      each = problems(functools.partial(held_out.check, setting))
      total = sequences * (each or 0)
    problems(functools.partial(tokenizer_of, setting.metadata))
    problems.check()
    for name, splits in questions.items():
      for split in ("search", "report"):
        items = goal.taken(splits, split)
        found = problems(
          functools.partial(_choices, goal, setting, context, name, items)
        )
        if len({item.cluster for item in items}) < 2:
          problems.add(
            f"config.{split}_items leaves one cluster of {name}, which gives "
            "no standard error: take more"
          )
        total += found.num_inputs if found and split == "search" else 0
    problems.check()
    return total

  def open_all(setting: Setting, tell: Callable[[str], None]) -> SplitTasks:
    held = held_out.open(setting, tell) if goal.held_out else None
    return SplitTasks(goal, questions, setting, context, held)

  return EvaluatorRecord(
    NAME,
    goal.told(held_out.direction),
    direction_of_sum(goal.directions(held_out.direction)),
    held_out.knobs,
    check,
    open_all,
  )
