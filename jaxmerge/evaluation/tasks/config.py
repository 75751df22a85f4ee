"""The keys of a config that name tasks and say how they are asked."""

import dataclasses
import functools
from typing import Any

from jaxmerge.config_fields import key
from jaxmerge.errors import Problems
from jaxmerge.evaluation.tasks.task import (
  CLOZE,
  LETTER,
  ChoiceItem,
  parse_task,
)

# The task that is no set of questions.
HELD_OUT = "heldout"


@dataclasses.dataclass(frozen=True)
class TasksConfig:
  """Keys of tasks.

  How they are asked is said of all but pairs, beside which there are others.
  """

  tasks: tuple[str, ...] = key(
    (), "type:argument each, as 'mmlu:DIR' or 'pairs:FILE.jsonl'"
  )
  shots: int = key(
    -1,
    "questions with their answers before each; -1: as many as the authors of a "
    "task show",
    at_least=-1,
  )
  template: str = key("", "of a prompt; empty: a task's own")
  style: str = key(
    "",
    "score the choices' texts or their letters; empty: as a task's authors do",
    choices=("", CLOZE, LETTER),
  )

  def problems(self, prefix: str) -> list[str]:
    """Lists what does not go together; files of tasks are read by `read`."""
    problems = []
    if self.tasks.count(HELD_OUT) > 1:
      problems.append(f"{prefix}tasks names {HELD_OUT!r} twice")
    if not self.questions.tasks and self.asked:
      problems.append(
        f"{', '.join(prefix + name for name in self.asked)}: {prefix}tasks has "
        "no questions, which alone they are of"
      )
    return problems

  @property
  def questions(self) -> "TasksConfig":
    """The tasks that are sets of questions."""
    names = (field.name for field in dataclasses.fields(TasksConfig))
    values = {name: getattr(self, name) for name in names}
    tasks = tuple(task for task in self.tasks if task != HELD_OUT)
    return TasksConfig(**values | {"tasks": tasks})

  @property
  def has_held_out(self) -> bool:
    return HELD_OUT in self.tasks

  @property
  def asked(self) -> dict[str, Any]:
    """The keys that say how tasks are asked, where they are given."""
    return {
      name: value
      for name, value, own in (
        ("shots", self.shots, -1),
        ("template", self.template, ""),
        ("style", self.style, ""),
      )
      if value != own
    }

  def read(self) -> dict[str, list[ChoiceItem]]:
    """Reads the items of all tasks, by the tasks' texts.

    Raises:
      InputError: lists what is wrong with the keys and with all files.
    """
    problems = Problems()
    found = [problems(functools.partial(parse_task, t)) for t in self.tasks]
    tasks = [task for task in found if task is not None]
    if len(set(self.tasks)) < len(self.tasks):
      problems.add(f"tasks names one twice: {', '.join(self.tasks)}")
    asked = self.asked
    takers = [task for task in tasks if task.record.shots is not None] or tasks
    items = {
      task.text: problems(
        functools.partial(task.read, **asked if task in takers else {})
      )
      for task in tasks
    }
    problems.check()
    return {text: read for text, read in items.items() if read is not None}
