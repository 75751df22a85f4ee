"""The words and the table claim what the numbers carry, and no more."""

import dataclasses

import pytest

from jaxmerge.errors import InputError
from jaxmerge.reporting.headline import headline, runner_up
from jaxmerge.reporting.results import Results
from jaxmerge.reporting.table import cells, text_table


def _with_merged(results: Results, **changes: object) -> Results:
  merged = dataclasses.replace(results.rows[-1], **changes)
  return dataclasses.replace(results, rows=(*results.rows[:-1], merged))


def test_text_table_is_aligned_and_marks_what_counts(results):
  header, rule, *body, rule_again, note = text_table(results).splitlines()
  assert rule == rule_again == "-" * len(header)
  assert {len(line) for line in body} == {len(header)}
  marked = [line.split()[0] for line in body if line.endswith("*")]
  assert marked == ["step_600", "uniform", "grid", "gp_hedge"]
  assert "600: 0.350, 750: 0.650" in body[-1]
  assert body[-1].endswith("-0.0271 ± 0.0044 *")
  assert body[0].endswith("reference")
  assert "two paired standard errors" in note


def test_the_mark_needs_more_than_two_standard_errors(results):
  at = _with_merged(
    results, report_delta_vs_last=-0.5, report_delta_stderr=0.25
  )
  beyond = _with_merged(
    results, report_delta_vs_last=-0.5, report_delta_stderr=0.2499
  )
  assert not cells(at)[-1][-1].endswith("*")
  assert cells(beyond)[-1][-1].endswith("*")


def test_a_gain(results):
  assert headline(results) == (
    "Merging steps 600 and 750 (0.350 / 0.650) lowers the report loss by"
    " 0.0271 ± 0.0044 nats/token (two paired standard errors) against step"
    " 750; the run needs 492,611 more tokens to get there."
  )
  assert runner_up(results) == ""


def test_a_gain_that_the_run_never_reaches(results):
  text = headline(dataclasses.replace(results, tokens_saved=None))
  assert "lowers the report loss by 0.0271" in text
  assert text.endswith("no checkpoint of the run itself reaches that loss.")
  assert "more tokens" not in text


@pytest.mark.parametrize("delta", [-0.004, 0.004])
def test_no_claim_within_two_standard_errors(results, delta):
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
  assert "Merging steps 450, 600 and 750 (0.100 / 0.300 / 0.600)" in text


def test_a_better_row_is_named(results):
  text = runner_up(_with_merged(results, report_loss=1.2))
  assert "the row grid has a lower loss" in text
  assert "1.1957 against 1.2000" in text
  text = runner_up(_with_merged(results, report_loss=1.3))
  assert "1.1957 against 1.3000" in text


def test_a_missing_row_is_an_error(results):
  with pytest.raises(InputError, match='no row "gp_hedge"'):
    headline(dataclasses.replace(results, rows=results.rows[:-1]))
