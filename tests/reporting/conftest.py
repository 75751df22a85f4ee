"""A small, made-up search over steps 600 and 750."""

import pytest

from jaxmerge.reporting.results import Results, Row, Trial


@pytest.fixture
def trials() -> list[Trial]:
  asked = ["start", "start", "ucb", "ei", "pi", "explore"]
  lambdas = [1.0, 0.0, 0.5, 0.71, 0.65, 0.3]
  return [
    Trial(
      number,
      {600: 1 - later, 750: later},
      1.198 + 0.23 * (later - 0.65) ** 2,
      0.001 if number else 0.0,
      asked_by,
    )
    for number, (later, asked_by) in enumerate(zip(lambdas, asked))
  ]


@pytest.fixture
def results() -> Results:
  return Results(
    rows=(
      Row("last", 1, {600: 0.0, 750: 1.0}, 1.2247, 1.2225, 0.0, 0.0),
      Row("step_600", 1, {600: 1.0}, 1.2962, 1.2431, 0.0206, 0.0031),
      Row("uniform", 1, {600: 0.5, 750: 0.5}, 1.2027, 1.1991, -0.0234, 0.0024),
      Row("grid", 6, {600: 0.4, 750: 0.6}, 1.1985, 1.1957, -0.0268, 0.0022),
      Row(
        "gp_hedge", 6, {600: 0.35, 750: 0.65}, 1.198, 1.1954, -0.0271, 0.0022
      ),
    ),
    tokens_trained=3_072_000,
    tokens_saved=492_611,
  )
