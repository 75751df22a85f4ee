"""results.json: exact shape, exact floats; tokens saved."""

import dataclasses
import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.errors import InputError
from jaxmerge.reporting.results import (
  Point,
  Precision,
  Results,
  Row,
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
  "report_clusters",
]


def test_shape_is_the_one_that_was_promised(tmp_path, results):
  write_results(tmp_path / "r.json", results)
  value = json.loads((tmp_path / "r.json").read_text())
  assert list(value) == ["study", "rows", "tokens_trained", "tokens_saved"]
  assert all(list(row) == ROW_KEYS for row in value["rows"])
  assert value["rows"][4]["weights"] == {"600": 0.35, "750": 0.65}
  assert value["tokens_saved"] == 492_611


def test_every_field_of_a_row_is_there(tmp_path, results):
  write_results(tmp_path / "r.json", results)
  rows = json.loads((tmp_path / "r.json").read_text())["rows"]
  for row in rows:
    row["weights"] = {int(step): w for step, w in row["weights"].items()}
  assert tuple(Row(**row) for row in rows) == results.rows


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_comes_back_bit_for_bit(tmp_path_factory, number):
  path = tmp_path_factory.mktemp("floats") / "r.json"
  row = Row("last", 1, {7: 1.0}, number, number, 0.0, 0.0, 9)
  rest = 0, 1, None, "nats/token", "minimize", "pair"
  write_results(path, Results((row,), (), *rest))
  back = json.loads(path.read_text())["rows"][0]["search_loss"]
  assert struct.pack("d", back) == struct.pack("d", number)


def test_none_is_null(tmp_path, results):
  path = tmp_path / "r.json"
  write_results(path, dataclasses.replace(results, tokens_saved=None))
  assert json.loads(path.read_text())["tokens_saved"] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ROW_KEYS[3:])
def test_no_number_that_is_not_finite_is_written(tmp_path, results, bad, field):
  row = dataclasses.replace(results.rows[1], **{field: bad})
  broken = dataclasses.replace(results, rows=(results.rows[0], row))
  with pytest.raises(InputError, match=rf"rows\[1\].{field} is not finite"):
    write_results(tmp_path / "r.json", broken)
  assert list(tmp_path.iterdir()) == []


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
  points = [Point(step, *point) for step, point in enumerate(later)]
  assert tokens_saved(merged, points) == expected
  scores = [point._replace(loss=-point.loss) for point in points]
  assert tokens_saved(-merged, scores, "maximize") == expected


def test_the_precision_of_weights(tmp_path, results):
  rows = {"embed": {600: 0.0125, 750: 0.0125}, "rest": {600: 0.1, 750: 0.1}}
  known = Precision("the limit", 4e-4, rows, rows, 11.5)
  path = tmp_path / "r.json"
  write_results(path, dataclasses.replace(results, precision=known))
  assert json.loads(path.read_text())["precision"] == {
    "stderr": {
      name: {str(step): value for step, value in row.items()}
      for name, row in rows.items()
    },
    "excess": 4e-4,
    "advice": "the limit",
    "passes": 11.5,
  }
  unknown = Precision("not known: no memory")
  write_results(path, dataclasses.replace(results, precision=unknown))
  assert json.loads(path.read_text())["precision"]["excess"] is None
  rows["rest"][600] = math.nan
  with pytest.raises(InputError, match="precision is not finite"):
    write_results(path, dataclasses.replace(results, precision=known))


def test_a_score_is_not_called_a_loss(tmp_path, results, mirror):
  write_results(tmp_path / "r.json", mirror(results))
  row = json.loads((tmp_path / "r.json").read_text())["rows"][0]
  assert list(row) == [name.replace("loss", "score") for name in ROW_KEYS]
  assert row["search_score"] == -results.rows[0].search_loss
