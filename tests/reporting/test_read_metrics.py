"""metrics.jsonl: whole but for a torn end."""

import json

import pytest

from jaxmerge.errors import InputError
from jaxmerge.reporting.metrics import read_metrics

RECORDS = [
  {"step": step, "tokens": 4096 * step, "loss": 5.0 / step, "lr": 0.002}
  for step in (1, 2, 3)
]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)


def test_every_record_in_order(tmp_path):
  (tmp_path / "m.jsonl").write_text(LINES)
  assert read_metrics(tmp_path / "m.jsonl") == RECORDS


@pytest.mark.parametrize("cut", [1, 2, 10, 40])
def test_a_torn_last_line_is_left_out(tmp_path, cut):
  (tmp_path / "m.jsonl").write_text(LINES[:-cut])
  # One character less is the newline alone: the record is whole.
  expected = RECORDS if cut == 1 else RECORDS[:-1]
  assert read_metrics(tmp_path / "m.jsonl") == expected


def test_a_letter_torn_in_two_is_left_out(tmp_path):
  (tmp_path / "m.jsonl").write_bytes(LINES.encode() + '{"a": "é'.encode()[:-1])
  assert read_metrics(tmp_path / "m.jsonl") == RECORDS


def test_a_damaged_letter_inside_is_an_error(tmp_path):
  damaged = b'{"step": 0, "tokens": 0, "loss": 1, "note": "\xff"}\n'
  (tmp_path / "m.jsonl").write_bytes(damaged + LINES.encode())
  with pytest.raises(InputError, match="line 1: not JSON"):
    read_metrics(tmp_path / "m.jsonl")


def test_empty_file(tmp_path):
  (tmp_path / "m.jsonl").write_text("")
  assert read_metrics(tmp_path / "m.jsonl") == []


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"step": 1', "not JSON"),
    ("", "not JSON"),
    ("3", "not an object"),
    ('{"step": 1, "tokens": 2}', 'no number for "loss"'),
    ('{"step": 1.5, "tokens": 2, "loss": 1}', 'no number for "step"'),
    ('{"step": 1, "tokens": true, "loss": 1}', 'no number for "tokens"'),
  ],
)
def test_a_bad_line_is_an_error_with_its_number(tmp_path, line, message):
  (tmp_path / "m.jsonl").write_text(f"{line}\n{LINES}")
  with pytest.raises(InputError, match=f"line 1: {message}"):
    read_metrics(tmp_path / "m.jsonl")


def test_steps_that_go_back_and_missing_files_are_errors(tmp_path):
  (tmp_path / "m.jsonl").write_text(LINES + LINES)
  with pytest.raises(InputError, match="line 4: step 1 comes after step 3"):
    read_metrics(tmp_path / "m.jsonl")
  with pytest.raises(InputError, match="cannot read"):
    read_metrics(tmp_path / "absent.jsonl")
