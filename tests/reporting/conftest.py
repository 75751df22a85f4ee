"""Small, made-up searches over two steps and over three."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxmerge.reporting.results import STOPPED_EARLY, Results, Row, Trial

# Of which a 95% interval is two standard errors to four digits.
CLUSTERS = 61


def _row(*values) -> Row:
  return Row(*values, report_clusters=CLUSTERS)


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
def results(trials) -> Results:
  return Results(
    rows=(
      _row("last", 1, {600: 0.0, 750: 1.0}, 1.2247, 1.2225, 0.0, 0.0),
      _row("step_600", 1, {600: 1.0}, 1.2962, 1.2431, 0.0206, 0.0031),
      _row("uniform", 1, {600: 0.5, 750: 0.5}, 1.2027, 1.1991, -0.0234, 0.0024),
      _row("grid", 6, {600: 0.4, 750: 0.6}, 1.1985, 1.1957, -0.0268, 0.0022),
      _row(
        "gp_hedge", 6, {600: 0.35, 750: 0.65}, 1.198, 1.1954, -0.0271, 0.0022
      ),
    ),
    trials=trials,
    best=4,
    tokens_trained=3_072_000,
    tokens_saved=492_611,
    unit="nats/token",
    direction="minimize",
    study="pair",
  )


_CORNERS_AND_MORE = [
  (0.0, 0.0, 1.0),
  (0.0, 0.8, 0.2),
  (0.8, 0.0, 0.2),
  (0.1, 0.3, 0.6),
  (0.2, 0.3, 0.5),
  (0.4, 0.2, 0.4),
  (0.1, 0.5, 0.4),
  (0.15, 0.25, 0.6),
]


@pytest.fixture
def three() -> list[Trial]:
  """Steps 450, 600 and 750 with alpha 0.2; trial 5 failed, 6 was stopped."""
  asked = ["start"] * 3 + ["ei", "pi", "ucb", "thompson", "explore"]
  failures = {5: "the score is not finite (nan)", 6: STOPPED_EARLY}
  trials = []
  for number, weights in enumerate(_CORNERS_AND_MORE):
    loss = 1.2 + 0.2 * float(np.sum((np.array(weights) - (0.1, 0.3, 0.6)) ** 2))
    known = number >= 3
    trials.append(
      Trial(
        number,
        dict(zip((450, 600, 750), weights)),
        math.nan if number == 5 else loss,
        0.0 if number == 0 else 0.001,
        asked[number],
        odds={"ei": 0.5, "pi": 0.3, "ucb": 0.15, "thompson": 0.05}
        if known
        else {},
        predicted_mean=loss + 0.001 * (number - 4) if known else None,
        predicted_std=0.001 if known else None,
        failure=failures.get(number, ""),
      )
    )
  return trials


@pytest.fixture
def of_three(results, three) -> Results:
  """Of the search over three steps, which chose trial 3."""
  merged = dataclasses.replace(results.merged, weights=three[3].weights)
  rows = (*results.rows[:-1], merged)
  return dataclasses.replace(results, rows=rows, trials=three, best=3)


@pytest.fixture
def of_trail(results):
  """Makes a search over steps of a trail that has one every ten."""

  def of_trail(merged: Sequence[int]) -> Results:
    *_, last = merged
    first, *_, grid, found = results.rows
    weights = dict(zip(merged, np.arange(len(merged)) / 1000, strict=True))
    steps = [
      _row(f"step_{step}", 1, {step: 1.0}, 1.3, 1.3, 0.02, 0.003)
      for step in range(10, last, 10)
    ]
    rows = [
      dataclasses.replace(first, weights={last: 1.0}),
      *steps,
      dataclasses.replace(grid, name="uniform", weights=weights),
      dataclasses.replace(grid, weights=weights),
      dataclasses.replace(found, weights=weights),
    ]
    return dataclasses.replace(results, rows=rows)

  return of_trail


@pytest.fixture
def mirror():
  """Makes of a search of losses the same search of scores, minus the losses."""

  def mirror(results: Results) -> Results:
    rows = [
      dataclasses.replace(
        row,
        search_loss=-row.search_loss,
        report_loss=-row.report_loss,
        report_delta_vs_last=-row.report_delta_vs_last,
      )
      for row in results.rows
    ]
    trials = [
      trial._replace(
        loss=-trial.loss,
        predicted_mean=trial.predicted_mean and -trial.predicted_mean,
      )
      for trial in results.trials
    ]
    return dataclasses.replace(
      results, rows=rows, trials=trials, direction="maximize"
    )

  return mirror


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
  """The figures that were saved, the latest last."""
  saved: list[Figure] = []
  original = Figure.savefig

  def spy(self, *args, **kwargs):
    saved.append(self)
    return original(self, *args, **kwargs)

  monkeypatch.setattr(Figure, "savefig", spy)
  return saved
