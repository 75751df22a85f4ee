"""A report of a search of tasks: rows, limits and what breaks them."""

import dataclasses
import json

import numpy as np
import pytest

from jaxmerge.evaluation import statistics
from jaxmerge.evaluation.score import Score, weighted_sum
from jaxmerge.reporting.page import headline, write_report
from jaxmerge.reporting.search_figures import convergence
from jaxmerge.reporting.task_rows import TaskRow, task_rows

CONSTRAINT = "no task worse than the best checkpoint by more than 0.02"


def _score(seed, unit, direction):
  random = np.random.default_rng(seed)
  ones = np.ones(40)
  clusters = np.arange(40) // 2
  return Score(random.normal(size=40), ones, clusters, unit, direction, 0)


@pytest.fixture
def of_tasks(results, trials):
  """Trial 2 has the lowest loss and breaks a limit."""
  broken = trials[2]._replace(loss=1.0, breaks=["pairs:a"])
  rows = (
    TaskRow("heldout", 1.0, "nats/token", "minimize", 5.0, 4.0, -1.0, 0.1, 40),
    TaskRow("pairs:a", -0.5, "accuracy", "maximize", 0.6, 0.5, -0.1, 0.04, 20),
    TaskRow("pairs:b", -0.5, "accuracy", "maximize", 0.6, 0.7, 0.1, 0.2, 20),
  )
  return dataclasses.replace(
    results,
    trials=[*trials[:2], broken, *trials[3:]],
    objective="minimize something",
    constraint=CONSTRAINT,
    tasks=rows,
  )


def test_rows_are_paired_differences_of_each_task():
  kinds = ("accuracy", "maximize"), ("nats/token", "minimize")
  old = [_score(i, *kind) for i, kind in enumerate(kinds)]
  new = [_score(i + 5, *kind) for i, kind in enumerate(kinds)]
  sums = [weighted_sum(("a", "b"), each, (1.0, 2.0)) for each in (old, new)]
  for t, row in enumerate(task_rows(*sums)):
    delta = statistics.difference(new[t], old[t])
    assert row[:4] == ("ab"[t], (1.0, -2.0)[t], *kinds[t])
    assert row[4:] == (old[t].mean, new[t].mean, *delta)
    assert row.clusters == 20


def test_better_and_worse_are_by_the_tasks_own_direction(of_tasks):
  assert [row.verdict for row in of_tasks.tasks] == ["better", "worse", ""]


def test_the_page_and_the_numbers_tell_them(tmp_path, of_tasks):
  write_report(
    tmp_path, title="", results=of_tasks, figures={}, facts={}, commands=()
  )
  page = (tmp_path / "report.html").read_text()
  # Half an interval by Student's t of 20 clusters: 2.093 standard errors.
  for said in (
    "The search was to minimize something",
    f"with {CONSTRAINT} on the search split",
    "accuracy, higher",
    "nats/token, lower",
    '<td class="number worse">-0.1000 ± 0.0837 *</td>',
    "(too bad on pairs:a)",
    "The items of each task are divided",
  ):
    assert said in page
  value = json.loads((tmp_path / "results.json").read_text())
  assert value["constraint"] == CONSTRAINT
  assert [row["name"] for row in value["tasks"]] == [
    *("heldout", "pairs:a", "pairs:b")
  ]


def test_what_breaks_a_limit_is_no_best_so_far(of_tasks, drawn):
  convergence(of_tasks)
  [line] = [
    line
    for line in drawn[-1].axes[0].lines
    if line.get_label() == "lowest so far"
  ]
  assert min(line.get_ydata()) > 1.1


def test_where_every_trial_breaks_one_the_headline_says_so(of_tasks):
  assert "lowers" in headline(of_tasks)
  trials = [trial._replace(breaks=["pairs:a"]) for trial in of_tasks.trials]
  said = headline(dataclasses.replace(of_tasks, trials=trials))
  assert said.endswith(f"no merge that it tried keeps to this: {CONSTRAINT}.")
