"""results.json: exact shape, exact floats, strict reading; tokens saved."""

import dataclasses
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.errors import InputError
from jaxmerge.reporting.results import (
  Results,
  Row,
  read_results,
  tokens_saved,
  write_results,
)

ROW_KEYS = [
  "name",
  "evaluations",
  "weights",
  "search_loss",
  "report_loss",
  "report_delta_vs_last",
  "report_delta_stderr",
]


def test_shape_is_the_one_that_was_promised(tmp_path, results):
  write_results(tmp_path / "r.json", results)
  value = json.loads((tmp_path / "r.json").read_text())
  assert list(value) == ["rows", "tokens_trained", "tokens_saved"]
  assert all(list(row) == ROW_KEYS for row in value["rows"])
  assert value["rows"][4]["weights"] == {"600": 0.35, "750": 0.65}
  assert value["tokens_saved"] == 492_611


def test_round_trip_is_exact(tmp_path, results):
  write_results(tmp_path / "r.json", results)
  assert read_results(tmp_path / "r.json") == results


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_comes_back_bit_for_bit(tmp_path_factory, number):
  path = tmp_path_factory.mktemp("floats") / "r.json"
  row = Row("last", 1, {7: 1.0}, number, number, 0.0, 0.0)
  write_results(path, Results((row,), 1, None))
  back = read_results(path).rows[0].search_loss
  assert struct.pack("d", back) == struct.pack("d", number)


def test_none_is_null(tmp_path, results):
  path = tmp_path / "r.json"
  write_results(path, dataclasses.replace(results, tokens_saved=None))
  assert '"tokens_saved": null' in path.read_text()
  assert read_results(path).tokens_saved is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ROW_KEYS[3:])
def test_no_number_that_is_not_finite_is_written(tmp_path, results, bad, field):
  row = dataclasses.replace(results.rows[1], **{field: bad})
  broken = dataclasses.replace(results, rows=(results.rows[0], row))
  with pytest.raises(InputError, match=rf"rows\[1\].{field} is not finite"):
    write_results(tmp_path / "r.json", broken)
  assert list(tmp_path.iterdir()) == []


def _drop(value: dict[str, Any]) -> None:
  del value["rows"][0]["search_loss"]


def _no_last(value: dict[str, Any]) -> None:
  value["rows"][0]["name"] = "first"


def _two_checkpoints(value: dict[str, Any]) -> None:
  value["rows"][0]["weights"] = {"600": 0.5, "750": 0.5}


@pytest.mark.parametrize(
  ("break_it", "message"),
  [
    (lambda v: v.pop("tokens_saved"), 'no key "tokens_saved"'),
    (lambda v: v.update(extra=1), 'unknown key "extra"'),
    (lambda v: v.update(rows={}), "rows is not a list"),
    (lambda v: v.update(tokens_trained=1.5), "tokens_trained is not a whole"),
    (lambda v: v.update(tokens_saved=-1), "tokens_saved is not a whole"),
    (_drop, r'rows\[0\]: no key "search_loss"'),
    (_no_last, 'no row "last"'),
    (_two_checkpoints, '"last" is one checkpoint'),
    (lambda v: v["rows"][1].update(name="last"), '2 rows "last"'),
    (lambda v: v["rows"][1].update(name="A b"), "is not a name"),
    (lambda v: v["rows"][1].update(note=""), 'unknown key "note"'),
    (lambda v: v["rows"][1].update(evaluations=True), "not a whole number"),
    (lambda v: v["rows"][1].update(weights={}), "not a map from step"),
    (lambda v: v["rows"][1].update(weights={"06": 1.0}), "'06' is not a step"),
    (lambda v: v["rows"][1].update(weights={"6": "1"}), "is not a number"),
    (lambda v: v["rows"][1].update(search_loss=None), "is not a number"),
    (lambda v: v["rows"][1].update(search_loss=math.nan), "is not finite"),
    (lambda v: v["rows"][1].update(report_delta_stderr=-1.0), "is negative"),
  ],
)
def test_reading_is_strict(tmp_path, results, break_it, message):
  path = tmp_path / "r.json"
  write_results(path, results)
  value = json.loads(path.read_text())
  break_it(value)
  path.write_text(json.dumps(value))
  with pytest.raises(InputError, match=message):
    read_results(path)


def test_every_problem_is_listed(tmp_path, results):
  path = tmp_path / "r.json"
  write_results(path, results)
  value = json.loads(path.read_text())
  value["tokens_trained"] = "many"
  value["rows"][2]["evaluations"] = -1
  value["rows"][3]["report_loss"] = None
  path.write_text(json.dumps(value))
  with pytest.raises(InputError) as caught:
    read_results(path)
  assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
  ("text", "message"),
  [("{", "is not JSON"), ("[]", "not an object"), (None, "cannot read")],
)
def test_files_that_are_not_results(tmp_path, text, message):
  path = tmp_path / "r.json"
  if text is not None:
    path.write_text(text)
  with pytest.raises(InputError, match=message):
    read_results(path)


def test_a_key_given_twice_is_an_error(tmp_path, results):
  path = tmp_path / "r.json"
  write_results(path, results)
  path.write_text(path.read_text().replace("{", '{"tokens_trained": 1,', 1))
  with pytest.raises(InputError, match='"tokens_trained" is given twice'):
    read_results(path)


@pytest.mark.parametrize(
  ("merged", "later", "expected"),
  [
    (1.20, [(100, 1.30), (200, 1.10)], 50),
    (1.15, [(100, 1.30), (200, 1.20), (400, 1.10)], 200),
    (1.10, [(100, 1.30), (200, 1.10)], 100),
    # Down, up and down again: the first crossing counts.
    (1.20, [(100, 1.30), (200, 1.10), (300, 1.40), (400, 1.00)], 50),
    (1.30, [(100, 1.30), (200, 1.10)], 0),
    (1.40, [(100, 1.30)], 0),
    (1.20, [(100, 1.30)], None),
    (1.20, [(100, 1.30), (200, 1.40), (300, 1.21)], None),
  ],
)
def test_tokens_saved(merged, later, expected):
  assert tokens_saved(merged, 100, later) == expected


@pytest.mark.parametrize(
  ("later", "message"),
  [
    ([], "not at none"),
    ([(200, 1.3), (300, 1.1)], "at 100 tokens, not at 200"),
    ([(100, 1.3), (300, 1.2), (200, 1.1)], "do not increase"),
    ([(100, 1.3), (200, math.nan)], "not a finite number"),
  ],
)
def test_tokens_saved_refuses(later, message):
  with pytest.raises(InputError, match=message):
    tokens_saved(1.2, 100, later)
