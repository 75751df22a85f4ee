"""The words and the table claim what the numbers carry, and no more."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from jaxmerge.reporting.page import (
  cells,
  format_weights,
  headline,
  runner_up,
  text_table,
)
from jaxmerge.reporting.results import Results
from jaxmerge.simplex.labels import all_weights


def _with_merged(results: Results, **changes: object) -> Results:
  merged = dataclasses.replace(results.rows[-1], **changes)
  return dataclasses.replace(results, rows=(*results.rows[:-1], merged))


def test_text_table_is_aligned_and_marks_what_counts(results):
  header, rule, *body, rule_again, note = text_table(results).splitlines()
  longest = max(map(len, [header, *body]))
  assert rule == rule_again == "-" * longest
  at = header.index("weights")
  assert {line[at - 2 : at] for line in body} == {"  "}
  marked = [line.split()[0] for line in body if line[:at].endswith("*  ")]
  assert marked == ["step_600", "uniform", "grid", "gp_hedge"]
  assert body[-1].endswith("-0.0271 ± 0.0044 *  600: 0.3500, 750: 0.6500")
  assert body[0].endswith("reference  750")
  assert note.endswith("95% interval (paired, Student's t) leaves out 0.")


def test_the_mark_is_a_test_on_the_clusters(results):
  """Two standard errors of six documents are not yet significant."""
  deltas_N = np.array([-0.8, -2.8, -0.2, 0.4, -1.2, -1.8])
  mean, stderr = deltas_N.mean(), stats.sem(deltas_N)
  for moved, is_significant in ((0.0, False), (-0.4, True)):
    row = _with_merged(
      results,
      report_delta_vs_last=mean + moved,
      report_delta_stderr=stderr,
      report_clusters=6,
    ).merged
    tested = stats.ttest_1samp(deltas_N + moved, 0.0)
    assert row.delta.p_value == pytest.approx(tested.pvalue)
    assert row.is_significant == is_significant
    assert row.delta.half_width() == pytest.approx(2.5706 * stderr, rel=1e-4)
    assert cells(row)[-2].endswith("*") == is_significant
  assert abs(mean) > 2 * stderr


def test_the_mark_of_many_clusters_needs_two_standard_errors(results):
  at = _with_merged(
    results, report_delta_vs_last=-0.5, report_delta_stderr=0.25
  )
  beyond = _with_merged(
    results, report_delta_vs_last=-0.5, report_delta_stderr=0.2499
  )
  assert not cells(at.rows[-1])[-2].endswith("*")
  assert cells(beyond.rows[-1])[-2].endswith("*")


def test_a_gain(results):
  assert headline(results) == (
    "Merging steps 600 and 750 (0.3500 / 0.6500) lowers the report loss by"
    " 0.0271 ± 0.0044 nats/token (95% interval) against step"
    " 750; the run needs 492,611 more tokens to get there."
  )
  assert runner_up(results) == ""


def test_a_gain_that_the_run_never_reaches(results):
  text = headline(dataclasses.replace(results, tokens_saved=None))
  assert "lowers the report loss by 0.0271" in text
  assert text.endswith("no checkpoint of the run itself reaches that loss.")
  assert "more tokens" not in text


@pytest.mark.parametrize("delta", [-0.004, 0.004])
def test_no_claim_within_the_interval(results, delta):
  text = headline(_with_merged(results, report_delta_vs_last=delta))
  assert "shows no measurable gain over step 750" in text
  assert f"{delta:+.4f} ± 0.0044" in text
  assert "lowers" not in text
  assert "tokens to get there" not in text


def test_a_merge_that_is_worse(results):
  text = headline(_with_merged(results, report_delta_vs_last=0.0271))
  assert "raises the report loss by 0.0271 ± 0.0044" in text
  assert "the merged model is worse than step 750" in text
  assert "tokens to get there" not in text


@pytest.mark.parametrize("weights", [{750: 1.0}, {600: 0.0, 750: 1.0}])
def test_a_search_that_keeps_the_last_checkpoint(results, weights):
  text = headline(
    _with_merged(results, weights=weights, report_delta_vs_last=0.0)
  )
  assert text.startswith("The search kept step 750 alone")


def test_a_search_that_takes_the_earlier_checkpoint(results):
  text = headline(_with_merged(results, weights={600: 1.0, 750: 0.0}))
  assert text.startswith("Taking step 600 alone lowers")


def test_three_checkpoints(results):
  weights = {450: 0.1, 600: 0.3, 750: 0.6}
  text = headline(_with_merged(results, weights=weights))
  assert "Merging steps 450, 600 and 750 (0.1000 / 0.3000 / 0.6000)" in text


def test_weights_that_are_as_good_as_zero_are_not_counted(results):
  weights = {300: 1e-9, 450: 0.1, 600: 0.3, 750: 0.6}
  text = headline(_with_merged(results, weights=weights))
  assert "Merging steps 450, 600 and 750 (0.1000 / 0.3000 / 0.6000)" in text


def test_a_better_row_is_named(results):
  text = runner_up(_with_merged(results, report_loss=1.2))
  assert "the row grid has a lower loss" in text
  assert "1.1957 against 1.2000" in text
  text = runner_up(_with_merged(results, report_loss=1.3))
  assert "1.1957 against 1.3000" in text


def test_the_unit_is_that_of_the_results(results):
  other = dataclasses.replace(results, unit="points")
  better = _with_merged(other, report_loss=1.3)
  for text in (text_table(other), headline(other), runner_up(better)):
    assert "points" in text
    assert "nats" not in text


def weights_of(*values: float) -> dict[int, float]:
  return {1000 + 50 * i: value for i, value in enumerate(values)}


@pytest.mark.parametrize(
  ("weights", "text"),
  [
    ({8: 0.25, 12: 0.75}, "8: 0.2500, 12: 0.7500"),
    ({8: 0.0, 12: 1.0}, "12"),
    ({4: 0.0, 8: -0.2, 12: 1.2}, "8: -0.2000, 12: 1.2000"),
    (weights_of(*[1 / 12] * 12), "12 x 0.0833"),
    (
      weights_of(0, 0, 0, 0.3, 0, 0, 0, 0, 0, 0, 0.00001, 0.7),
      "1150: 0.3000, 1550: 0.7000",
    ),
    (
      weights_of(0.1, 0.2, 0.3, 0.4),
      "1000: 0.1000, 1050: 0.2000, 1100: 0.3000, 1150: 0.4000",
    ),
    (
      weights_of(*[0.01 * i for i in range(11)], 0.45),
      "1450: 0.0900, 1500: 0.1000, 1550: 0.4500 and 8 others",
    ),
    (weights_of(0, 0, 0, 0, 1), "1200"),
  ],
)
def test_weights(weights, text):
  assert format_weights(weights) == text


def test_a_progress_line_names_even_the_weights_of_zero_of_a_pair():
  assert all_weights({8: 0.0, 12: 1.0}) == "8: 0.0000, 12: 1.0000"


def test_a_table_and_a_headline_of_twelve(results):
  merged = results.merged
  many = weights_of(*[0.01 * i for i in range(11)], 0.45)
  rows = [
    dataclasses.replace(row, weights=many) if row is merged else row
    for row in results.rows
  ]
  wide = dataclasses.replace(results, rows=rows)
  lines = text_table(wide).splitlines()
  assert max(map(len, lines)) <= 132
  [line] = [line for line in lines if line.startswith("gp_hedge")]
  assert "1550: 0.4500 and 8 others" in line
  assert headline(wide).startswith(
    "Merging 11 steps (1450: 0.0900, 1500: 0.1000, 1550: 0.4500 and 8 others)"
  )


def test_other_checkpoints_are_folded_away(of_trail):
  """Of 100 checkpoints the table has the merged ones and their neighbours."""
  found = of_trail(merged=(40, 50, 60))
  names = [row.name for row in found.shown]
  ours = ["step_30", "step_40", "step_50"]
  assert names == ["last", *ours, "uniform", "grid", "gp_hedge"]
  assert len(found.folded) == 2  # steps 10 and 20
  *_, told, _, _ = text_table(found).splitlines()
  assert told == "(2 other checkpoints alone: in the report)"
  assert "step_20" not in text_table(found)


def test_of_many_merged_checkpoints_the_heaviest_are_shown(of_trail):
  found = of_trail(merged=range(810, 1000, 10))
  single = [row.steps[0] for row in found.shown if row.is_single]
  assert single == [990, *range(920, 990, 10)]
  assert [row.name for row in found.shown][-1] == "gp_hedge"
  assert len(found.shown) + len(found.folded) == len(found.rows)


def test_of_scores_more_is_better(results, mirror):
  found = mirror(results)
  assert "raises the report score by 0.0271" in headline(found)
  assert "against step 750" in headline(found)
  assert "positive is better" in text_table(found)
  assert "report score" in text_table(found).splitlines()[0]
  assert runner_up(found) == ""
  worse = _with_merged(found, report_delta_vs_last=-0.02, report_loss=-1.24)
  assert "lowers the report score by 0.0200" in headline(worse)
  assert "is worse than step 750" in headline(worse)
  assert "the row grid has a higher score" in runner_up(worse)
