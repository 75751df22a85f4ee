"""Weights of many checkpoints fit in a line; of a few they stay as they are."""

import dataclasses

import pytest

from jaxmerge.reporting.headline import headline
from jaxmerge.reporting.table import all_weights, format_weights, text_table


def weights_of(*values: float) -> dict[int, float]:
  return {1000 + 50 * i: value for i, value in enumerate(values)}


@pytest.mark.parametrize(
  ("weights", "text"),
  [
    ({8: 0.25, 12: 0.75}, "8: 0.250, 12: 0.750"),
    ({8: 0.0, 12: 1.0}, "12"),
    ({4: 0.0, 8: -0.2, 12: 1.2}, "4: 0.000, 8: -0.200, 12: 1.200"),
    (weights_of(*[1 / 12] * 12), "12 x 0.083"),
    (
      weights_of(0, 0, 0, 0.3, 0, 0, 0, 0, 0, 0, 0.0001, 0.7),
      "1150: 0.300, 1550: 0.700",
    ),
    (
      weights_of(0.1, 0.2, 0.3, 0.4),
      "1000: 0.100, 1050: 0.200, 1100: 0.300, 1150: 0.400",
    ),
    (
      weights_of(*[0.01 * i for i in range(11)], 0.45),
      "1450: 0.090, 1500: 0.100, 1550: 0.450 and 8 others",
    ),
    (weights_of(0, 0, 0, 0, 1), "1200"),
  ],
)
def test_weights(weights, text):
  assert format_weights(weights) == text


def test_a_progress_line_names_even_the_weights_of_zero_of_a_pair():
  assert all_weights({8: 0.0, 12: 1.0}) == "8: 0.000, 12: 1.000"


def test_a_table_and_a_headline_of_twelve(results):
  merged = results.row("gp_hedge")
  many = weights_of(*[0.01 * i for i in range(11)], 0.45)
  rows = [
    dataclasses.replace(row, weights=many) if row is merged else row
    for row in results.rows
  ]
  wide = dataclasses.replace(results, rows=rows)
  lines = text_table(wide).splitlines()
  assert max(map(len, lines)) <= 132
  [line] = [line for line in lines if line.startswith("gp_hedge")]
  assert "1550: 0.450 and 8 others" in line
  assert headline(wide).startswith(
    "Merging 11 steps (1450: 0.090, 1500: 0.100, 1550: 0.450 and 8 others)"
  )
