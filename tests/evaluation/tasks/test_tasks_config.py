"""Several tasks of a config, read at once."""

import json

import pytest

from jaxmerge.errors import InputError
from jaxmerge.evaluation.tasks.config import TasksConfig

SKY = {"question": "The sky is", "choices": ["blue", "green"], "answer": 0}
SNOW = {"question": "Snow is", "choices": ["red", "white"], "answer": 1}
LEAF = {"question": "A leaf is", "choices": ["green", "old"], "answer": 0}


@pytest.fixture
def tasks(tmp_path):
  def lines(name, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(text)
    return tmp_path / name

  pairs = [
    {"sentence_good": good, "sentence_bad": "x"} for good in ("He is.", "I am.")
  ]
  return (
    f"choice:{lines('choice.jsonl', SKY, SNOW, LEAF)}",
    f"pairs:{lines('pairs.jsonl', *pairs)}",
  )


def test_keys_are_for_tasks_that_are_asked(tasks):
  found = TasksConfig(tasks=tasks).read()
  assert list(found) == list(tasks)
  choice, pairs = found.values()
  assert [len(choice), len(pairs)] == [3, 2]
  asked = TasksConfig(
    tasks=tasks,
    shots=1,
    template="{shots}{question}, {choices}:",
    style="letter",
  ).read()
  assert asked[tasks[0]][0].prompt == (
    "The sky is, A. blue\nB. green: A\n\nSnow is, A. red\nB. white:"
  )
  assert asked[tasks[1]] == pairs
  assert TasksConfig(tasks=tasks[:1], shots=0).read() == {tasks[0]: choice}
  assert TasksConfig().read() == {}


@pytest.mark.parametrize(
  ("key", "message"),
  [
    ({"shots": 0}, "it takes no shots"),
    ({"template": "{question}"}, "plain text alone"),
    ({"style": "cloze"}, "no style 'cloze'; there is sentence"),
  ],
)
def test_pairs_alone_refuse_what_they_cannot_heed(tasks, key, message):
  with pytest.raises(InputError, match=message):
    TasksConfig(tasks=tasks[1:], **key).read()
  spaced = TasksConfig(tasks=tasks[1:], template=" ").read()
  assert spaced[tasks[1]][0].prompt == " "


def test_problems_of_all_tasks_are_told_at_once(tasks, tmp_path):
  (tmp_path / "empty.jsonl").write_text("")
  wrong = (
    *tasks[:1],
    *tasks[:1],
    "mmul:x",
    "mmlu",
    f"pairs:{tmp_path}/empty.jsonl",
  )
  with pytest.raises(InputError) as caught:
    TasksConfig(tasks=wrong, template="x").read()
  found = caught.value.problems
  assert [
    words in problem
    for words, problem in zip(
      (
        "unknown task",
        "names no DIR",
        "names one twice",
        "lacks {question}",
        "is empty",
      ),
      found,
      strict=True,
    )
  ] == [True] * 5
