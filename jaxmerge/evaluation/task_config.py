"""Keys of configs that score tasks, and of those that search on them.

T tasks.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxmerge.config_fields import key
from jaxmerge.evaluation.score import Direction, direction_of_sum
from jaxmerge.evaluation.tasks.config import HELD_OUT, TasksConfig
from jaxmerge.evaluation.tasks.splits import Splits
from jaxmerge.evaluation.tasks.task import ChoiceItem

ACC, ACC_NORM, GOLD = "acc", "acc_norm", "gold"
METRICS = (ACC, ACC_NORM, GOLD)


@dataclasses.dataclass(frozen=True)
class ScoredTasksConfig(TasksConfig):
  """Keys of tasks of which one may be the held-out text."""

  tasks: tuple[str, ...] = key(
    (HELD_OUT,),
    "'heldout' (the evaluator on the corpus), or type:argument, as 'mmlu:DIR' "
    "or 'pairs:FILE.jsonl'; as many as you like",
  )

  def task_problems(self, prefix: str) -> list[str]:
    """Lists what does not go together; files of tasks are read by `read`."""
    problems = TasksConfig.problems(self, prefix)
    if not self.tasks:
      problems.append(f"{prefix}tasks is empty, so there is nothing to score")
    return problems


class Goal(NamedTuple):
  """The aim of a search of other tasks than the held-out text alone.

  Attributes:
    tasks: T of them, as they are typed.
    weights: of each in the sum that is searched on; above 0: the better the
      better.
    metric: of questions.
    tolerances: by how much each may be worse than the best checkpoint, in its
      own unit; () where that does not matter.
    search_items, report_items: of each task of questions, at most; 0: all.
    held_out: the evaluator's name on the corpus, "" where that is no task.
  """

  tasks: Sequence[str]
  weights: Sequence[float]
  metric: str
  tolerances: Sequence[float]
  search_items: int
  report_items: int
  held_out: str

  @property
  def identity(self) -> dict[str, Any]:
    """Tells its study from others, beside the items themselves."""
    return {
      "task_weights": list(self.weights),
      "metric": self.metric,
      "task_tolerance": list(self.tolerances),
      "search_items": self.search_items,
      "heldout": self.held_out,
    }

  def taken(self, splits: Splits, split: str) -> Sequence[ChoiceItem]:
    """The items of a task of questions that are scored of a split."""
    count = self.search_items if split == "search" else self.report_items
    found: Sequence[ChoiceItem] = getattr(splits, split)
    return found[: count or None]

  def directions(self, held_out: Direction) -> list[Direction]:
    """Directions of the tasks' own scores, given that of the held-out text."""
    of_questions: Direction = "minimize" if self.metric == GOLD else "maximize"
    return [held_out if t == HELD_OUT else of_questions for t in self.tasks]

  def told(self, held_out: Direction) -> str:
    """Says what is sought, as "maximize the mean acc of pairs:a, pairs:b"."""
    directions = self.directions(held_out)
    direction = direction_of_sum(directions)
    if not self.held_out and self.is_mean:
      mean = "the mean " if len(self.tasks) > 1 else ""
      return f"{direction} {mean}{self.metric} of {', '.join(self.tasks)}"
    terms = []
    for task, weight, own in zip(self.tasks, self.weights, directions):
      factor = weight if own == direction else -weight
      unit = self.held_out if task == HELD_OUT else self.metric
      sign = "-" if factor < 0 else "+"
      terms.append(f"{sign} {abs(factor):g} x {unit} of {task}")
    return f"{direction} {' '.join(terms).removeprefix('+ ')}"

  @property
  def is_mean(self) -> bool:
    """Says whether it is the plain mean of the tasks' scores."""
    return all(weight == 1 / len(self.tasks) for weight in self.weights)

  @property
  def constraint(self) -> str:
    """Says what must not get worse; "" where nothing is said of it."""
    if not self.tolerances:
      return ""
    known = [f"{t:g} ({name})" for name, t in zip(self.tasks, self.tolerances)]
    if len(set(self.tolerances)) == 1:
      known = [f"{self.tolerances[0]:g}"]
    return (
      f"no task worse than the best checkpoint by more than {', '.join(known)}"
    )


class Abilities(NamedTuple):
  """As much of an evaluator's record as a choice of the solver asks of."""

  name: str = "tasks"
  is_differentiable: bool = False
  has_curvature: bool = False
  direction: Direction = "minimize"


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(ScoredTasksConfig):
  """Keys of what a search seeks."""

  task_weights: tuple[float, ...] = key(
    (),
    "of each task in the sum that is searched on: above 0 the better the "
    "better, below 0 the worse; (): the mean of tasks of questions",
  )
  metric: str = key(
    ACC,
    "of questions: the share that is right, that by bytes of a choice, or "
    "bits/byte of the right answer, which is the smoothest",
    choices=METRICS,
  )
  task_tolerance: tuple[float, ...] = key(
    (),
    "no task may be worse than the best checkpoint by more than this, in its "
    "own unit: one for all tasks, or one for each; (): they may",
    at_least=0,
  )
  search_items: int = key(
    0,
    "of each task of questions, scored in each trial; 0: half of all",
    at_least=0,
  )
  report_items: int = key(
    0, "of each, scored for the report; 0: the other half", at_least=0
  )

  def objective_problems(self, prefix: str, evaluator: str) -> list[str]:
    """Lists what does not go together.

    Args:
      prefix: of the keys.
      evaluator: of the held-out text, where it is not the usual one.
    """
    problems = self.task_problems(prefix)
    if not self.tasks:
      return problems
    of_questions = {
      "metric": self.metric != ACC,
      "search_items": self.search_items,
      "report_items": self.report_items,
    }
    given = [
      prefix + name for name, is_given in of_questions.items() if is_given
    ]
    if given and not self.questions.tasks:
      problems.append(
        f"{', '.join(given)}: {prefix}tasks has no questions, which alone they "
        "are of"
      )
    if evaluator and not self.has_held_out:
      problems.append(
        f"{prefix}evaluator {evaluator!r}: {prefix}tasks has no {HELD_OUT!r}, "
        "which alone it scores"
      )
    problems += [
      f"{prefix}{name} is 1, and two items or more give a standard error"
      for name in ("search_items", "report_items")
      if getattr(self, name) == 1
    ]
    return problems + self._sum_problems(prefix)

  def _sum_problems(self, prefix: str) -> list[str]:
    """Says why tasks cannot be summed with these weights and tolerances."""
    count, weights = len(self.tasks), self.task_weights
    several = [
      prefix + name
      for name in ("task_weights", "task_tolerance")
      if getattr(self, name)
    ]
    if count == 1:
      return [
        f"{name} is of several tasks, and {prefix}tasks has one"
        for name in several
      ]
    problems = []
    if weights and len(weights) != count:
      problems.append(
        f"{prefix}task_weights has {len(weights)} numbers for {count} tasks"
      )
    elif weights and not any(weights):
      problems.append(f"{prefix}task_weights: all are 0, so nothing is sought")
    elif not all(weights) and not self.task_tolerance:
      idle = [t for t, weight in zip(self.tasks, weights) if not weight]
      problems.append(
        f"{prefix}task_weights: {', '.join(idle)} weighs 0, and without "
        f"{prefix}task_tolerance nothing asks for it"
      )
    if not weights and self.has_held_out:
      problems.append(
        f"{prefix}task_weights: {HELD_OUT!r} and questions have other units; "
        f"say what each of {', '.join(self.tasks)} counts for, as (1.0, 2.0)"
      )
    if len(self.task_tolerance) not in (0, 1, count):
      problems.append(
        f"{prefix}task_tolerance has {len(self.task_tolerance)} numbers for "
        f"{count} tasks"
      )
    return problems

  @property
  def has_questions(self) -> bool:
    return self.tasks != (HELD_OUT,)

  def goal_with(self, evaluator: str) -> Goal | None:
    """The aim of a search, where it is not the held-out text's score alone.

    Args:
      evaluator: of the held-out text.
    """
    if not self.has_questions:
      return None
    count, tolerances = len(self.tasks), self.task_tolerance
    return Goal(
      self.tasks,
      self.task_weights or (1 / count,) * count,
      self.metric,
      tolerances * count if len(tolerances) == 1 else tolerances,
      self.search_items,
      self.report_items,
      evaluator if self.has_held_out else "",
    )
