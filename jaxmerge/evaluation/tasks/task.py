"""Tasks: questions with choices, read from what a user names.

A task is typed `type:argument`, as "mmlu:DIR"; its type is a record of TASKS.
"""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from jaxmerge.errors import InputError, Problems
from jaxmerge.evaluation.tasks.prompts import Template, continuation, letter
from jaxmerge.files import user_path
from jaxmerge.formats.records.metadata import canonical_json, hash_text
from jaxmerge.registry import Registry

CLOZE = "cloze"
LETTER = "letter"


class ChoiceItem(NamedTuple):
  """A prompt and the texts of which one is to follow it.

  Attributes:
    id: names the item for people, once in its task.
    prompt: shots and question; may be empty.
    choices: what follows the prompt at once, with a space where one belongs.
    answer: index of the right choice.
    cluster: items of one are alike (of one passage, subject).
    hash: of the question and the choices in any order, whatever the prompt
      makes of them: equal where two items ask the same.
  """

  id: str
  prompt: str
  choices: tuple[str, ...]
  answer: int
  cluster: str
  hash: str


def hash_of(items: Sequence[ChoiceItem]) -> str:
  """A hash of all that is scored of a task."""
  return hash_text(canonical_json(items))


class Question(NamedTuple):
  """A question as its file has it.

  Attributes:
    where: file and line, for messages.
    id: as ChoiceItem's.
    fields: texts by the names under which a template has them; at least
      `question`.
    choices, answer: the texts and the index of the right one.
    subject: whose shots go before it; "" where there is but one.
    cluster: as ChoiceItem's; "": alike to no other item.
    prefix: goes before all of the prompt.
  """

  where: str
  id: str
  fields: Mapping[str, str]
  choices: tuple[str, ...]
  answer: int
  subject: str = ""
  cluster: str = ""
  prefix: str = ""

  @property
  def hash(self) -> str:
    asked = [self.fields["question"], self.fields.get("passage", "")]
    texts = [*map(_plain, asked), *sorted(map(_plain, self.choices))]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:32]


def _plain(text: str) -> str:
  """The text without what does not change its meaning."""
  return " ".join(unicodedata.normalize("NFC", text).split())


class Source(NamedTuple):
  """Questions that are scored, and those shown as shots, by subject."""

  scored: Sequence[Question]
  shots: Mapping[str, Sequence[Question]]


class TaskRecord(NamedTuple):
  """A type of tasks.

  Attributes:
    name, argument, summary: in `name:argument` and its help.
    templates: by style, the type's own first: a style is "cloze", which
      scores the choices' texts, or "letter", which scores "A", "B" ... beside
      them.
    shots: that the type's authors show; None: it takes none.
    read: reads the argument for so many shots; what is wrong with it goes
      into the problems.
  """

  name: str
  argument: str
  summary: str
  templates: Mapping[str, str]
  shots: int | None
  read: Callable[[epath.Path, int, Problems], Source]


TASKS: Registry[TaskRecord] = Registry("task", "jaxmerge.evaluation.tasks")


class Task(NamedTuple):
  """A record of TASKS and its argument."""

  record: TaskRecord
  argument: str

  @property
  def text(self) -> str:
    """The task as it is typed."""
    return f"{self.record.name}:{self.argument}"

  def read(
    self, shots: int | None = None, template: str = "", style: str = ""
  ) -> list[ChoiceItem]:
    """Reads and checks the items, in the order of their files.

    Args:
      shots: questions with their answers before each item; None: as many as
        the type's authors show.
      template: of a prompt, as docs/evaluate.md says; "": the type's own.
      style: "cloze" or "letter"; "": the type's own.

    Raises:
      InputError: lists what is wrong with the arguments and in all files.
    """
    record, problems = self.record, Problems()
    style = style or next(iter(record.templates))
    if style not in record.templates:
      known = ", ".join(record.templates)
      problems.add(f"{self.text}: no style {style!r}; there is {known}")
    if record.shots is None and shots is not None:
      problems.add(f"{self.text}: it takes no shots, and {shots} are asked for")
    elif shots is not None and shots < 0:
      problems.add(f"{self.text}: {shots} shots")
    found = problems(
      lambda: Template.parse(
        template or record.templates.get(style, ""),
        shows_choices=style == LETTER,
        has_question=_asks(record),
      )
    )
    count = (record.shots or 0) if shots is None else max(shots, 0)
    source = record.read(user_path(self.argument), count, problems)
    if not problems:
      _check_enough(self.argument, source.scored, problems)
    if found is not None:
      problems += found.missing([*source.scored, *_all(source.shots)])
    problems.check()
    assert found is not None
    return [
      _item(question, source.shots.get(question.subject, ()), found, style)
      for question in source.scored
    ]


def _asks(record: TaskRecord) -> bool:
  """Says whether the type's prompts show a question."""
  return any("{question}" in each for each in record.templates.values())


def _all(shots: Mapping[str, Sequence[Question]]) -> list[Question]:
  return [question for each in shots.values() for question in each]


def _check_enough(
  name: str, scored: Sequence[Question], problems: Problems
) -> None:
  """Finds items that give no standard error."""
  if len(scored) < 2:
    problems.add(
      f"{name}: {len(scored)} items, which give no standard error; two or more "
      "do"
    )
  elif len({question.cluster or question.hash for question in scored}) < 2:
    problems.add(
      f"{name}: all {len(scored)} items are of one cluster "
      f"({scored[0].cluster or 'they ask the same'}), which gives no standard "
      "error"
    )


def _item(
  question: Question,
  shots: Sequence[Question],
  template: Template,
  style: str,
) -> ChoiceItem:
  prompt = template.header(question) + "".join(
    shown + continuation(shown, _texts(shot, style)[shot.answer]) + "\n\n"
    for shot, shown in ((shot, template.item(shot)) for shot in shots)
  )
  prompt = question.prefix + prompt + template.item(question)
  texts = _texts(question, style)
  return ChoiceItem(
    question.id,
    prompt,
    tuple(continuation(prompt, text) for text in texts),
    question.answer,
    question.cluster or question.hash,
    question.hash,
  )


def _texts(question: Question, style: str) -> Sequence[str]:
  if style == LETTER:
    return [letter(number) for number in range(len(question.choices))]
  return question.choices


def parse_task(text: str) -> Task:
  """The task that `type:argument` names.

  Raises:
    InputError: there is no such type, or nothing after it.
  """
  name, _, argument = text.partition(":")
  record = TASKS.find(name)
  if not argument:
    raise InputError(
      f"task {text!r} names no {record.argument}: {name}:{record.argument}"
    )
  return Task(record, argument)
