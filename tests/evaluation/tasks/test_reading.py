"""Tasks as their files have them, and every bad file named with its line."""

import csv
import json
import os

import pytest
from etils import epath

from jaxmerge.errors import InputError
from jaxmerge.evaluation.tasks.task import (
  TASKS,
  Question,
  Source,
  TaskRecord,
  parse_task,
)
from tests.helpers import ROOT

BLIMP = ROOT.parent / "shared/blimp"
SKY = {"question": "The sky is", "choices": ["blue", "green"], "answer": 0}
SNOW = {"question": "Snow is", "choices": ["red", "hot", "white"], "answer": 2}
LEAF = {"question": "A leaf is", "choices": ["green", "old"], "answer": 0}


def lines(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def table(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", newline="") as file:
    csv.writer(file).writerows(rows)
  return path


def read(kind, path, **knobs):
  return parse_task(f"{kind}:{path}").read(**knobs)


def problems(kind, path, **knobs):
  with pytest.raises(InputError) as caught:
    read(kind, path, **knobs)
  return caught.value.problems


def test_choices_follow_their_question(tmp_path):
  path = lines(tmp_path / "a.jsonl", SKY, SNOW)
  sky, snow = read("choice", path)
  assert (sky.prompt, sky.choices) == ("The sky is", (" blue", " green"))
  assert (sky.answer, snow.answer) == (0, 2)
  assert (sky.id, snow.id) == ("0", "1")
  assert sky.cluster == sky.hash != snow.hash


def test_letters_stand_for_choices(tmp_path):
  path = lines(tmp_path / "a.jsonl", SKY, SNOW)
  _, snow = read("choice", path, style="letter")
  assert snow.prompt == "Snow is\nA. red\nB. hot\nC. white\nAnswer:"
  assert snow.choices == (" A", " B", " C")


def test_an_answer_is_an_index_a_letter_or_a_text(tmp_path):
  for answer in (2, "C", "white"):
    path = lines(tmp_path / "a.jsonl", SKY, SNOW | {"answer": answer})
    assert read("choice", path)[1].answer == 2


def test_the_first_items_are_shots(tmp_path):
  path = lines(tmp_path / "a.jsonl", SKY, SNOW, LEAF, SKY | {"id": "again"})
  leaf, again = read("choice", path, shots=2)
  assert leaf.prompt == "The sky is blue\n\nSnow is white\n\nA leaf is"
  assert (leaf.id, again.id) == ("2", "again")
  (leaf, _) = read("choice", path, shots=2, style="letter")
  assert leaf.prompt.startswith(
    "The sky is\nA. blue\nB. green\nAnswer: A\n\nSn"
  )
  with_header = "Q about {topic}\n\n{shots}Q: {question} {topic}\nA:"
  path = lines(
    tmp_path / "b.jsonl", *(q | {"topic": "colour"} for q in (SKY, SNOW, LEAF))
  )
  snow, leaf = read("choice", path, shots=1, template=with_header)
  shot = "Q about colour\n\nQ: The sky is colour\nA: blue\n\n"
  assert snow.prompt == shot + "Q: Snow is colour\nA:"
  assert leaf.prompt == shot + "Q: A leaf is colour\nA:"


def test_a_prefix_goes_before_its_own_item(tmp_path):
  path = lines(
    tmp_path / "a.jsonl", SKY | {"prefix": "Grass is green.\n"}, SNOW
  )
  sky, snow = read("choice", path)
  assert sky.prompt == "Grass is green.\nThe sky is"
  assert snow.prompt == "Snow is"


def test_items_of_a_passage_are_a_cluster(tmp_path):
  path = lines(
    tmp_path / "a.jsonl",
    SKY | {"cluster": 7},
    SNOW | {"passage": "It was cold."},
    LEAF | {"passage": "It was cold."},
  )
  found = [item.cluster for item in read("choice", path)]
  assert found == ["7", "It was cold.", "It was cold."]
  template = "{passage} {question}"
  sky = read(
    "choice",
    lines(
      path,
      *(q | {"passage": "P"} for q in (SKY, SNOW)),
      LEAF | {"passage": "O"},
    ),
    template=template,
  )
  assert sky[0].prompt == "P The sky is"


def test_a_hash_is_of_what_is_asked(tmp_path):
  changed = SNOW | {
    "question": "Snow  is ",
    "choices": ["white", "red", "hot"],
    "answer": 0,
    "id": "other",
    "source": "a book",
  }
  other = SNOW | {"choices": ["white", "red", "cold"], "answer": 0}
  path = lines(tmp_path / "a.jsonl", SNOW, changed, other, SKY)
  one, two, three, _ = (item.hash for item in read("choice", path))
  assert one == two != three
  there = read("choice", path, template="{question}?", style="cloze")[0].hash
  assert there == one
  passage = lines(path, SNOW, SNOW | {"passage": "Once."}, SKY)
  assert len({item.hash for item in read("choice", passage)}) == 3


def test_pairs_are_whole_sentences(tmp_path):
  path = lines(
    tmp_path / "a.jsonl",
    {"sentence_good": "She sees herself.", "sentence_bad": "She sees himself."},
    {"sentence_good": "He ran.", "sentence_bad": "He ran.", "UID": "same"},
  )
  first, _ = read("pairs", path)
  assert first.prompt == ""
  assert first.choices == ("She sees herself.", "She sees himself.")
  assert first.answer == 0
  first, _ = read("pairs", path, template="Right:")
  assert first.prompt + first.choices[0] == "Right: She sees herself."


@pytest.mark.skipif(not BLIMP.is_dir(), reason="BLiMP is not there")
def test_all_of_blimp_is_read():
  files = sorted(BLIMP.glob("*.jsonl"))
  assert len(files) == 12
  for file in files:
    items = read("pairs", file)
    assert len(items) == 1000
    row = json.loads(file.read_text().splitlines()[3])
    assert items[3].choices == (row["sentence_good"], row["sentence_bad"])


def exam(folder, split, ending, header, subjects, make):
  for subject, count in subjects.items():
    rows = [make(f"{subject} {split} {i}", "ABCD"[i % 4]) for i in range(count)]
    table(folder / split / f"{subject}{ending}.csv", [*header, *rows])


def mmlu(folder, **subjects):
  make = lambda name, answer: [name, f"{name}, one", "2", "3", "4", answer]
  exam(folder, "dev", "_dev", [], dict.fromkeys(subjects, 5), make)
  exam(folder, "test", "_test", [], subjects, make)
  return folder


def test_mmlu_has_no_header_and_shots_of_its_subject(tmp_path):
  items = read("mmlu", mmlu(tmp_path, us_history=3, anatomy=2), shots=2)
  assert [item.id for item in items] == [
    *("anatomy/0", "anatomy/1"),
    *("us_history/0", "us_history/1", "us_history/2"),
  ]
  assert [item.answer for item in items] == [0, 1, 0, 1, 2]
  assert {item.cluster for item in items} == {"anatomy", "us_history"}
  asked = "{0}\nA. {0}, one\nB. 2\nC. 3\nD. 4\nAnswer:"
  assert items[3].prompt == (
    "The following are multiple choice questions (with answers) about us "
    "history.\n\n"
    + asked.format("us_history dev 0")
    + " A\n\n"
    + asked.format("us_history dev 1")
    + " B\n\n"
    + asked.format("us_history test 1")
  )
  assert items[3].choices == (" A", " B", " C", " D")
  five = read("mmlu", tmp_path)
  assert five[0].prompt.count("Answer:") == 6
  cloze = read("mmlu", tmp_path, style="cloze", shots=0)[0]
  assert cloze.prompt.endswith("about anatomy.\n\nanatomy test 0\nAnswer:")
  assert cloze.choices == (" anatomy test 0, one", " 2", " 3", " 4")


def test_items_of_a_single_subject_are_no_cluster(tmp_path):
  items = read("mmlu", mmlu(tmp_path, anatomy=3))
  assert [item.cluster for item in items] == [item.hash for item in items]


def test_an_exam_may_be_of_json_lines_or_have_a_header(tmp_path):
  mmlu(tmp_path, anatomy=2)
  expected = read("mmlu", tmp_path)
  with_header = tmp_path / "test/anatomy_test.csv"
  rows = [["question", "A", "B", "C", "D", "answer"]]
  rows += csv.reader(with_header.read_text().splitlines())
  table(with_header, rows)
  assert read("mmlu", tmp_path) == expected
  with_header.unlink()
  lines(
    tmp_path / "test/anatomy_test.jsonl",
    *(
      {"question": q, "choices": choices, "answer": "ABCD".index(answer)}
      for q, *choices, answer in rows[1:]
    ),
  )
  assert read("mmlu", tmp_path) == expected


def test_ceval_is_scored_on_its_validation_split(tmp_path):
  header = ["id", "question", "A", "B", "C", "D", "answer"]
  make = lambda name, answer: [
    "0",
    f"{name}是____",
    "一",
    "二",
    "三",
    "四",
    answer,
  ]
  subjects = {"law": 2, "logic": 2}
  exam(tmp_path, "val", "_val", [header], subjects, make)
  explained = [*header, "explanation"]
  shown = lambda *a: [*make(*a), "because"]
  exam(tmp_path, "dev", "_dev", [explained], dict.fromkeys(subjects, 5), shown)
  items = read("ceval", tmp_path, shots=1)
  assert items[3].id == "logic/1"
  assert items[3].prompt == (
    "以下是中国关于逻辑学考试的单项选择题，请选出其中的正确答案。\n\n"
    "logic dev 0是____\nA. 一\nB. 二\nC. 三\nD. 四\n答案：A\n\n"
    "logic val 1是____\nA. 一\nB. 二\nC. 三\nD. 四\n答案："
  )
  assert items[3].choices == ("A", "B", "C", "D")


def test_cmmlu_has_an_index_first(tmp_path):
  header = ["", "Question", "A", "B", "C", "D", "Answer"]
  make = lambda name, answer: ["7", name, "一", "二", "三", "四", answer]
  for split in ("dev", "test"):
    exam(tmp_path, split, "", [header], {"arts": 5, "unknown_one": 5}, make)
  items = read("cmmlu", tmp_path, shots=1)
  assert items[0].prompt == (
    "以下是关于艺术学的单项选择题，请直接给出正确答案的选项。\n\n"
    "题目：arts dev 0\nA. 一\nB. 二\nC. 三\nD. 四\n答案是：A\n\n"
    "题目：arts test 0\nA. 一\nB. 二\nC. 三\nD. 四\n答案是："
  )
  assert "关于unknown one的" in items[-1].prompt
  cloze = read("cmmlu", tmp_path, shots=0, style="cloze")[1]
  assert (cloze.prompt[-4:], cloze.choices[0]) == ("答案是：", "一")


def test_a_type_of_a_users_own(tmp_path):
  def all_of(path, shots, problems):
    words = path.read_text().split()
    ask = lambda word: Question(word, word, {"question": word}, ("a", "b"), 1)
    return Source([ask(word) for word in words[shots:]], {})

  record = TaskRecord("words", "FILE", "x", {"cloze": "{question}:"}, 0, all_of)
  TASKS.register(record)
  (tmp_path / "words").write_text("one two")
  items = read("words", tmp_path / "words")
  assert [item.prompt for item in items] == ["one:", "two:"]


def test_unknown_types_and_missing_arguments():
  for text, message in (
    ("mmul:x", "unknown task 'mmul', did you mean 'mmlu'?"),
    ("zzz:x", "known are ceval, choice, cmmlu, mmlu, pairs"),
    ("mmlu", "task 'mmlu' names no DIR: mmlu:DIR"),
    ("pairs:", "pairs:FILE.jsonl"),
  ):
    with pytest.raises(InputError) as caught:
      parse_task(text)
    assert message in str(caught.value)
  assert parse_task("mmlu:a:b").text == "mmlu:a:b"


def test_every_bad_line_is_named(tmp_path):
  path = tmp_path / "a.jsonl"
  rows = [
    SKY,
    {"choices": ["a", "b"], "answer": 0},
    SKY | {"question": 3},
    SKY | {"question": " "},
    {"question": "q", "answer": 0},
    SKY | {"choices": "blue"},
    SKY | {"choices": ["a", ""]},
    SKY | {"choices": ["a", 2]},
    SKY | {"choices": ["a"]},
    SKY | {"choices": ["a", "a"]},
    SKY | {"answer": 2},
    SKY | {"answer": -1},
    SKY | {"answer": "C"},
    SKY | {"answer": True},
    {"question": "q", "choices": ["a", "b"]},
    SKY | {"choices": ["B", "b"], "answer": "B"},
    SKY | {"id": "x"},
    SNOW | {"id": "x"},
    SNOW | {"cluster": [1]},
  ]
  content = "".join(json.dumps(row) + "\n" for row in rows).encode()
  content += b"[1]\nnot json\n\n" + b'{"question": "\xff"}\n'
  path.write_bytes(content)
  wanted = [
    "line 2: no 'question'; it has 'choices', 'answer'",
    "line 3: 'question' is a number, not a text",
    "line 4: 'question' is empty",
    "line 5: no 'choices'",
    "line 6: 'choices' is not a list",
    "line 7: choice B is empty",
    "line 8: choice B is a number, not a text",
    "line 9: 1 choices, not 2 to 26",
    "line 10: the choice 'a' is there twice",
    "line 11: the answer 2 is not an index 0 to 1, a letter A to B or the text "
    "of a choice",
    "line 12: the answer -1 is not",
    "line 13: the answer 'C' is not",
    "line 14: the answer True is not",
    "line 15: no 'answer'",
    "line 16: the answer 'B' may mean two choices",
    f"line 18: the id 'x' is that of {path}, line 17",
    "line 19: 'cluster' is neither a text nor an integer",
    "line 20: a JSON list, where an object belongs",
    "line 21: not JSON",
    "line 23: not UTF-8",
  ]
  found = problems("choice", path)
  assert len(found) == len(wanted)
  for problem, expected in zip(found, wanted):
    assert problem.startswith(f"{path}, {expected}")


def test_pairs_without_a_sentence(tmp_path):
  good = {"sentence_good": "a", "sentence_bad": "b"}
  path = lines(tmp_path / "a.jsonl", good, {"sentence_good": "a"}, good)
  (found,) = problems("pairs", path)
  assert found.startswith(f"{path}, line 2: no 'sentence_bad'")


def test_files_that_are_no_task(tmp_path):
  empty = tmp_path / "empty.jsonl"
  empty.write_bytes(b"\xef\xbb\xbf\n")
  assert problems("choice", empty) == [f"{empty}: it is empty"]
  (found,) = problems("choice", tmp_path / "none.jsonl")
  assert found.startswith(
    f"cannot read {tmp_path / 'none.jsonl'}: No such file"
  )
  (found,) = problems("choice", tmp_path)
  assert "it is not a file" in found
  single = lines(tmp_path / "one.jsonl", SKY)
  (found,) = problems("choice", single)
  assert found.startswith(f"{single}: 1 items, which give no standard error")
  alike = lines(
    tmp_path / "alike.jsonl", SKY | {"cluster": "a"}, SNOW | {"cluster": "a"}
  )
  (found,) = problems("choice", alike)
  assert "all 2 items are of one cluster (a)" in found
  twice = lines(tmp_path / "twice.jsonl", SKY, SKY)
  assert "they ask the same" in problems("choice", twice)[0]


def test_shots_that_are_not_there(tmp_path):
  path = lines(tmp_path / "a.jsonl", SKY, SNOW)
  assert "leave none to score" in problems("choice", path, shots=2)[0]
  assert "-1 shots" in problems("choice", path, shots=-1)[0]
  with_prefix = lines(tmp_path / "b.jsonl", SKY, SNOW | {"prefix": "p"}, LEAF)
  (found,) = problems("choice", with_prefix, shots=1)
  assert found.startswith(f"{with_prefix}, line 2: a 'prefix' beside 1 shots")
  good = {"sentence_good": "a", "sentence_bad": "b"}
  pairs = lines(tmp_path / "c.jsonl", good, good | {"sentence_bad": "c"})
  assert "it takes no shots" in problems("pairs", pairs, shots=1)[0]
  mmlu(tmp_path / "m", anatomy=2)
  (found,) = problems("mmlu", tmp_path / "m", shots=6)
  assert found.startswith(f"{tmp_path / 'm/dev/anatomy_dev.csv'}: 6 shots")
  mmlu(tmp_path / "m", law=2)
  (tmp_path / "m/dev/law_dev.csv").unlink()
  (found,) = problems("mmlu", tmp_path / "m")
  assert found == f"{tmp_path / 'm/dev'}: no file of 'law' for shots"
  assert len(read("mmlu", tmp_path / "m", shots=0)) == 4


def test_bad_files_of_an_exam(tmp_path):
  folder = mmlu(tmp_path / "a", anatomy=2, law=2, zoology=2)
  table(folder / "test/anatomy_test.csv", [["q", "1", "2", "3", "4", "E"]])
  table(
    folder / "test/law_test.csv", [["q", "1", "2", "3", "A"], ["q", *"12 4A"]]
  )
  (folder / "test/zoology_test.csv").write_bytes(b'q,1,2,"3\n\xff",4,A\n')
  table(folder / "test/notes.csv", [["x"]])
  (folder / "test/._law_test.csv").write_bytes(b"\x00")
  found = problems("mmlu", folder)
  test = folder / "test"
  assert [p.split(" is not an")[0].split(" (")[0] for p in found] == [
    f"{test / 'notes.csv'}: its name is not SUBJECT_test.csv or .jsonl",
    f"{test / 'anatomy_test.csv'}, line 1: the answer 'E'",
    f"{test / 'law_test.csv'}, line 1: 5 columns, not 6",
    f"{test / 'law_test.csv'}, line 2: 'c' is empty",
    f"{test / 'zoology_test.csv'}, line 2: not UTF-8",
  ]


def test_another_header(tmp_path):
  header = ["id", "question", "A", "B", "C", "D", "answer"]
  row = ["0", "q", *"1234", "A"]
  for split in ("dev", "val"):
    table(tmp_path / split / f"law_{split}.csv", [header, *[row] * 5])
  table(tmp_path / "val/arts_val.csv", [["id", "text", *"ABCD", "gold"], row])
  table(tmp_path / "val/logic_val.csv", [header])
  table(tmp_path / "val/physician_val.csv", [header, row[:-1]])
  found = problems("ceval", tmp_path, shots=0)
  assert found == [
    f"{tmp_path / 'val/arts_val.csv'}, line 1: the header is 'id, text, A, B, "
    "C, D, gold', and has to have question, a, b, c, d, answer",
    f"{tmp_path / 'val/logic_val.csv'}: no question behind its header",
    f"{tmp_path / 'val/physician_val.csv'}, line 2: 6 columns, not 7",
  ]


def test_folders_that_are_no_exam(tmp_path):
  found = problems("mmlu", tmp_path)
  assert found[0].startswith(f"{tmp_path / 'test'}: no such folder")
  (tmp_path / "test").mkdir()
  (tmp_path / "test/README.txt").write_text("x")
  found = problems("mmlu", tmp_path)
  assert f"{tmp_path / 'test'}: no file SUBJECT_test.csv or .jsonl" in found
  mmlu(tmp_path, law=2)
  lines(tmp_path / "test/law_test.jsonl", SKY)
  assert "law_test.csv is of that subject too" in problems("mmlu", tmp_path)[0]


def test_lines_of_a_row_are_counted(tmp_path):
  good = ["a\nquestion\nof lines", *"1234", "A"]
  mmlu(tmp_path, law=2)
  table(tmp_path / "test/law_test.csv", [good, good, ["q", *"1234", "Z"]])
  (found,) = problems("mmlu", tmp_path)
  assert "law_test.csv, line 7: the answer 'Z'" in found


def test_a_stray_quote_joins_no_questions(tmp_path):
  """A reader that forgives it takes the next question for a part of its own."""
  mmlu(tmp_path, law=2, arts=2)
  row = "q{},1,2,3,4,A\n"
  text = row.format(1) + '"q"2",1,2,3,4,B\n' + row.format(3)
  (tmp_path / "test/law_test.csv").write_text(text)
  (tmp_path / "test/arts_test.csv").write_text(row.format(1) + '"q2,1,2,3,4,A')
  found = problems("mmlu", tmp_path, shots=0)
  assert [p.split(" (")[0] for p in found] == [
    f"{tmp_path / 'test/arts_test.csv'}, line 2: not CSV",
    f"{tmp_path / 'test/law_test.csv'}, line 2: not CSV",
  ]


def test_a_line_ends_where_csv_says(tmp_path):
  """Not at what Unicode counts among its line ends."""
  mmlu(tmp_path, law=2)
  rows = ["a\u2028b,1,2,3,4,A", '"c\x85d",1,2,3,4,B', 'a 5" disk,1,2,3,4,C']
  file = tmp_path / "test/law_test.csv"
  file.write_bytes("\r\n".join([*rows, ""]).encode())
  found = read("mmlu", tmp_path, shots=0, template="{question}", style="cloze")
  assert [item.prompt for item in found] == ["a\u2028b", "c\x85d", 'a 5" disk']
  file.write_text("\n".join([*rows, "q,1,2,3,4,Z"]))
  (told,) = problems("mmlu", tmp_path, shots=0)
  assert "law_test.csv, line 4: the answer 'Z'" in told


def test_columns_that_are_there_twice(tmp_path):
  mmlu(tmp_path, law=2, arts=2)
  header = ["question", *"ABCD", "answer", "Answer"]
  table(tmp_path / "test/law_test.csv", [header, ["q", *"1234", "A", "B"]])
  (tmp_path / "test/arts_test.csv").unlink()
  one = {"question": "q", "choices": ["a", "b"], "answer": 0}
  lines(tmp_path / "test/arts_test.jsonl", one, one | {"Question": "other"})
  found = problems("mmlu", tmp_path, shots=0)
  assert found == [
    f"{tmp_path / 'test/arts_test.jsonl'}, line 2: 'question' is there twice",
    f"{tmp_path / 'test/law_test.csv'}, line 1: 'answer' is there twice",
  ]


def test_names_that_are_no_text(tmp_path):
  mmlu(tmp_path, law=2)
  os.rename(tmp_path / "test/law_test.csv", tmp_path / "test/\udcff_test.csv")
  told = problems("mmlu", tmp_path, shots=0)[0]
  test = tmp_path / "test"
  assert told == f"{test}: the name '\\udcff_test.csv' is not UTF-8"
  for kind in ("mmlu", "choice"):
    told = problems(kind, "a\0b", shots=0)[0]
    assert told.startswith("cannot read ")


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
  def refuse(path):
    raise PermissionError(13, "Permission denied", str(path))

  folder = mmlu(tmp_path, law=2)
  monkeypatch.setattr(type(epath.Path(folder)), "iterdir", refuse)
  found = problems("mmlu", folder)
  assert found[0] == f"cannot read {folder / 'test'}: Permission denied"
