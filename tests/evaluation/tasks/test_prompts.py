"""Templates, and what is wrong with them."""

import json

import pytest

from jaxmerge.errors import InputError
from jaxmerge.evaluation.tasks.prompts import continuation
from jaxmerge.evaluation.tasks.task import parse_task

ROWS = [
  {"question": "The {sky}", "choices": ["is", "was"], "answer": 0},
  {"question": "The sea", "choices": ["is", "was"], "answer": 0, "tone": "low"},
]


@pytest.fixture
def task(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  return parse_task(f"choice:{path}")


def test_braces_of_a_question_are_text(task):
  assert task.read(template="{{x}} {question}")[0].prompt == "{x} The {sky}"


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("{quest}", "lacks {question}"),
    ("{question} {", "cannot be read"),
    ("{question} {}", "no plain name: ''"),
    ("{question} {0}", "no plain name: '0'"),
    ("{question.__class__}", "no plain name: 'question.__class__'"),
    ("{question!r}", "no plain name: 'question'!r"),
    ("{question:>100}", "no plain name: 'question':>100"),
    ("{question}{shots}", "lacks {question} behind {shots}"),
    ("{shots}{shots}{question}", "names {shots} twice"),
    ("{question} {qeustion}", "'qeustion', did you mean 'question'?"),
    ("{question} {zzz}", "'zzz'; there are choices, question, tone"),
    ("{question} {tone}", "line 1: no 'tone', which the template names"),
  ],
)
def test_templates_that_say_nothing(task, template, message):
  with pytest.raises(InputError) as caught:
    task.read(template=template)
  assert message in str(caught.value)


def test_letters_need_choices_to_be_seen(task):
  with pytest.raises(InputError, match=r"lacks \{choices\}"):
    task.read(template="{question}:", style="letter")
  with pytest.raises(InputError, match="no style 'words'; there is cloze, let"):
    task.read(style="words")


def test_problems_of_arguments_and_files_are_told_together(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"question": "q"}\n')
  with pytest.raises(InputError) as caught:
    parse_task(f"choice:{path}").read(shots=-1, template="x", style="letter")
  assert len(caught.value.problems) == 4


def test_pairs_have_plain_text_before_them(tmp_path):
  path = tmp_path / "a.jsonl"
  row = {"sentence_good": "a", "sentence_bad": "b"}
  path.write_text(
    json.dumps(row) + "\n" + json.dumps(row | {"sentence_bad": "c"})
  )
  with pytest.raises(InputError, match="plain text alone"):
    parse_task(f"pairs:{path}").read(template="{question}")
  assert parse_task(f"pairs:{path}").read(template=" ")[0].prompt == " "


@pytest.mark.parametrize(
  ("prompt", "choice", "expected"),
  [
    ("Answer:", "A", " A"),
    ("Answer: ", "A", "A"),
    ("Answer:\n", "A", "A"),
    ("Answer:", " A", " A"),
    ("", "A", "A"),
    ("答案：", "A", "A"),
    ("天空是", "蓝", "蓝"),
    ("The sky is", "蓝", " 蓝"),
  ],
)
def test_a_space_goes_where_one_belongs(prompt, choice, expected):
  assert continuation(prompt, choice) == expected
