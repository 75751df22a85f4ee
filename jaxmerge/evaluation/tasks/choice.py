"""Questions with choices in a file of JSON lines."""

from typing import Any

from etils import epath

from jaxmerge.errors import Problems
from jaxmerge.evaluation.tasks.files import (
  answer_of,
  choices_of,
  json_lines,
  text_of,
)
from jaxmerge.evaluation.tasks.task import (
  CLOZE,
  LETTER,
  TASKS,
  Question,
  Source,
  TaskRecord,
)

# Names under which a line has something else than a field of a template.
_OWN = ("choices", "answer", "id", "cluster", "prefix")


def read(path: epath.Path, shots: int, problems: Problems) -> Source:
  """Reads the questions, of which the first ones are the shots."""
  questions = []
  seen: dict[str, str] = {}
  for number, (where, row) in enumerate(json_lines(path, problems)):
    question = _question(where, f"{number}", row, problems)
    questions.append(question)
    if (other := seen.setdefault(question.id, where)) != where:
      problems.add(f"{where}: the id {question.id!r} is that of {other}")
    if shots and question.prefix:
      problems.add(f"{where}: a 'prefix' beside {shots} shots; it is in place")
  if shots and shots >= len(questions) and not problems:
    problems.add(
      f"{path}: {shots} shots are asked for, which are the first of its "
      f"{len(questions)} items and leave none to score"
    )
  return Source(questions[shots:], {"": questions[:shots]})


def _question(
  where: str, number: str, row: dict[str, Any], problems: Problems
) -> Question:
  fields = {
    key: str(value)
    for key, value in row.items()
    if type(value) in (str, int, float) and key not in _OWN
  }
  fields["question"] = text_of(where, row, "question", problems)
  choices = choices_of(where, row, problems)
  twice = {text for text in choices if choices.count(text) > 1}
  problems += [
    f"{where}: the choice {t!r} is there twice" for t in sorted(twice)
  ]
  answer = answer_of(
    where, row.get("answer"), choices, problems, may_be_text=True
  )
  return Question(
    where,
    _name(where, row, "id", problems) or number,
    fields,
    choices,
    answer,
    cluster=_name(where, row, "cluster", problems)
    or _name(where, row, "passage", problems),
    prefix=_name(where, row, "prefix", problems),
  )


def _name(where: str, row: dict[str, Any], key: str, problems: Problems) -> str:
  """A text or an integer that may be left out."""
  value = row.get(key, "")
  if type(value) in (str, int):
    return str(value)
  problems.add(f"{where}: {key!r} is neither a text nor an integer")
  return ""


TASKS.register(
  TaskRecord(
    "choice",
    "FILE.jsonl",
    "a line for each item: question, choices, answer (index, letter or text); "
    "may have id, cluster or passage, prefix",
    {
      CLOZE: "{shots}{question}",
      LETTER: "{shots}{question}\n{choices}\nAnswer:",
    },
    0,
    read,
  )
)
