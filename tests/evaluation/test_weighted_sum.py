"""Weighted sums of tasks' scores: their means, errors, limits and samples."""

import math

import numpy as np
import pytest

from jaxmerge.evaluation import statistics
from jaxmerge.evaluation.checkpoint_scores import (
  Limits,
  Resolution,
  expected_resolution,
  resolution_text,
)
from jaxmerge.evaluation.evaluator import Resumable
from jaxmerge.evaluation.score import Score, interleaved, weighted_sum
from jaxmerge.evaluation.task_config import Goal
from jaxmerge.evaluation.weighted_tasks import WeightedTasks

NAMES = ("a", "b")


def score(values, weights=None, clusters=None, unit="accuracy", tokens=7):
  values = np.asarray(values, np.float64)
  return Score(
    values,
    np.ones(len(values)) if weights is None else np.asarray(weights),
    np.arange(len(values)) if clusters is None else np.asarray(clusters),
    unit,
    "minimize" if "/" in unit else "maximize",
    tokens,
  )


def some(seed, size, unit="accuracy"):
  random = np.random.default_rng(seed)
  weights = random.integers(1, 9, size)
  clusters = random.integers(0, size // 3, size)
  return score(random.normal(size=size) * weights, weights, clusters, unit)


def by_hand(values, weights, clusters):
  """Mean and squared standard error of a ratio, cluster by cluster."""
  mean = values.sum() / weights.sum()
  names = set(clusters.tolist())
  sums = [
    (values[clusters == c] - mean * weights[clusters == c]).sum() for c in names
  ]
  factor = len(names) / (len(names) - 1) / weights.sum() ** 2
  return mean, factor * sum(u**2 for u in sums), len(names)


def test_its_mean_and_the_error_of_a_difference_are_those_of_the_parts():
  old = some(0, 40), some(1, 12, "nats/token")
  new = [
    Score(
      each.values_N + np.random.default_rng(9).normal(size=len(each.values_N)),
      *(each.weights_N, each.clusters_N, each.unit, each.direction, 7),
    )
    for each in old
  ]
  weights = (2.0, 0.5)
  sums = [weighted_sum(NAMES, parts, weights) for parts in (new, old)]
  # A loss among accuracies is subtracted.
  assert [part.factor for part in sums[0].parts] == [2.0, -0.5]
  assert (sums[0].direction, sums[0].unit) == ("maximize", "weighted sum")
  assert sums[0].tokens == 14
  means = [each.values_N.sum() / each.weights_N.sum() for each in new]
  assert sums[0].mean == pytest.approx(2 * means[0] - 0.5 * means[1])
  found = statistics.difference(*sums)
  parts = [
    by_hand(n.values_N - o.values_N, o.weights_N, o.clusters_N)
    for n, o in zip(new, old)
  ]
  assert found.mean == pytest.approx(2 * parts[0][0] - 0.5 * parts[1][0])
  terms = [4 * parts[0][1], 0.25 * parts[1][1]]
  assert found.stderr == pytest.approx(math.sqrt(sum(terms)), rel=1e-12)
  share = sum(v**2 / (p[2] - 1) for v, p in zip(terms, parts))
  assert found.clusters == int(sum(terms) ** 2 / share) + 1
  same = statistics.difference(sums[0], sums[0])
  assert (same.mean, same.stderr, same.p_value) == (0.0, 0.0, 1.0)


def test_one_task_alone_is_its_own_score():
  alone = some(3, 30)
  found = weighted_sum(("a",), [alone], (1.0,))
  assert (found.mean, found.unit) == (alone.mean, alone.unit)
  assert found.direction == alone.direction
  assert statistics.ratio(found.values_N, found) == statistics.ratio(
    alone.values_N, alone
  )


@pytest.mark.parametrize(
  ("units", "weights", "unit", "direction", "factors"),
  [
    (("accuracy",) * 2, (0.5, 0.5), "accuracy", "maximize", [0.5, 0.5]),
    (("bits/byte",) * 2, (0.5, 0.5), "bits/byte", "minimize", [0.5, 0.5]),
    (("accuracy",) * 2, (1.0, 1.0), "weighted sum", "maximize", [1.0, 1.0]),
    (("accuracy",) * 2, (1.5, -0.5), "weighted sum", "maximize", [1.5, -0.5]),
    (("nats/token", "accuracy"), (1, -1), "weighted sum", "maximize", [-1, -1]),
  ],
)
def test_direction_and_unit_follow_from_the_parts(
  units, weights, unit, direction, factors
):
  parts = [some(i, 12, each) for i, each in enumerate(units)]
  found = weighted_sum(NAMES, parts, weights)
  assert (found.unit, found.direction) == (unit, direction)
  assert [part.factor for part in found.parts] == factors


def test_the_error_is_what_repeated_studies_scatter_by():
  random = np.random.default_rng(0)
  means, stderrs = [], []
  sizes, weights = (30, 200), (1.0, 0.25)
  for _ in range(1500):
    parts = [
      score(random.normal(size=size) * (t + 1)) for t, size in enumerate(sizes)
    ]
    found = statistics.ratio(
      (whole := weighted_sum(NAMES, parts, weights)).values_N, whole
    )
    means.append(found.mean)
    stderrs.append(found.stderr)
  true = math.sqrt(1 / 30 + 0.25**2 * 4 / 200)
  assert np.std(means) == pytest.approx(true, rel=0.06)
  assert np.mean(stderrs) == pytest.approx(true, rel=0.02)


def test_what_has_no_weight_has_no_error():
  one_cluster = score([1.0, 2.0], clusters=[0, 0])
  found = weighted_sum(NAMES, [some(1, 12), one_cluster], (1.0, 0.0))
  alone = statistics.ratio(some(1, 12).values_N, some(1, 12))
  summed = statistics.ratio(found.values_N, found)
  assert summed.stderr == pytest.approx(alone.stderr)
  assert summed.clusters == alone.clusters
  found = weighted_sum(NAMES, [some(1, 12), one_cluster], (1.0, 0.1))
  assert statistics.ratio(found.values_N, found).stderr == math.inf


def test_every_beginning_has_its_share_of_each():
  order = interleaved([4, 2, 100])
  part = np.repeat([0, 1, 2], [4, 2, 100])[order]
  assert part[:3].tolist() == [0, 1, 2]
  for count in (10, 40, 77):
    shares = np.bincount(part[:count], minlength=3) / [4, 2, 100]
    assert np.abs(shares - count / 106).max() <= 0.5
  for t, start in ((0, 0), (1, 4), (2, 6)):
    own = order[part == t]
    assert own.tolist() == list(range(start, start + len(own)))


class Known:
  """Scores given numbers; an evaluator of one task."""

  def __init__(self, values):
    self.values, self.asked = values, []

  def score(self, params, upto=None):
    self.asked.append(upto)
    # A few more, as of whole batches.
    return score(self.values[: None if upto is None else upto + 1])


GOAL = Goal(NAMES, (0.5, 0.5), "acc", (), 0, 0, "")


def test_a_part_of_the_items_is_scored_of_each_task():
  tasks = WeightedTasks(GOAL, [Known(np.arange(40)), Known(np.arange(20))])
  whole = tasks.score(None)
  some = tasks.score(None, 15)
  assert [len(some.of_part(t).values_N) for t in (0, 1)] == [10, 5]
  assert some.values_N.tolist() == whole.first(15).values_N.tolist()
  assert some.part_N.tolist() == whole.first(15).part_N.tolist()
  assert some.mean == whole.first(15).mean


class Going(Known):
  """It goes on from an earlier score."""

  def extend(self, params, known, upto):
    self.asked.append((len(known.values_N), upto))
    return score(self.values[:upto])


def test_what_a_part_has_scored_is_not_scored_again():
  of_a, of_b = Going(np.arange(40)), Known(np.arange(20))
  tasks = WeightedTasks(GOAL, [of_a, of_b])
  assert isinstance(tasks, Resumable)
  whole = tasks.score(None)
  found = tasks.extend(None, tasks.score(None, 15), 30)
  assert of_a.asked == [None, 10, (10, 20)]
  assert of_b.asked == [None, 5, 10]
  assert found.values_N.tolist() == whole.first(30).values_N.tolist()
  assert found.mean == whole.first(30).mean


@pytest.mark.parametrize("count", [4, 17, 35, 69, 138])
def test_a_part_holds_the_same_items_as_the_whole(count):
  """Whatever the sizes: a model is exactly as good as itself."""
  random = np.random.default_rng(0)
  parts = [Known(random.normal(size=size)) for size in (37, 101, 5)]
  goal = GOAL._replace(tasks=("a", "b", "c"), weights=(0.5, 0.25, 0.25))
  tasks = WeightedTasks(goal, parts)
  whole = tasks.score(None)
  some = tasks.score(None, count)
  assert some.part_N.tolist() == whole.part_N[:count].tolist()
  assert some.values_N.tolist() == whole.values_N[:count].tolist()
  found = statistics.difference(some, whole.first(count))
  assert (found.mean, found.p_value) == (0.0, 1.0)
  longer = tasks.extend(None, some, 140)
  assert longer.values_N.tolist() == whole.values_N[:140].tolist()


def test_of_a_task_of_few_items_one_is_scored_at_least():
  """Of which nothing can be told, and nothing is said of the sum."""
  parts = [Known(np.arange(size)) for size in (40, 2, 2)]
  goal = GOAL._replace(tasks=("a", "b", "c"), weights=(1 / 3,) * 3)
  tasks = WeightedTasks(goal, parts)
  whole = tasks.score(None)
  some = tasks.score(None, 2)
  assert [len(some.of_part(t).values_N) for t in range(3)] == [1, 1, 1]
  found = statistics.difference(some.first(2), whole.first(2))
  assert found.stderr == math.inf
  assert found.p_value == 1


def test_limits_are_of_the_best_checkpoint_of_each_task():
  scores = [
    weighted_sum(NAMES, [score(a), score(b, unit="nats/token")], (1.0, 1.0))
    for a, b in (
      ([1, 1, 1, 0], [2.0, 3.0]),
      ([1, 0, 0, 0], [1.0, 1.5]),
      ([np.nan] * 4, [np.nan] * 2),
    )
  ]
  goal = GOAL._replace(tolerances=(0.25, 0.5))
  limits = Limits.of(scores, goal)
  assert [best.mean for best in limits.best_T] == [0.75, 1.25]
  # Accuracy falls by .5 where .25 may be lost; the loss stands.
  excess = limits.excess(scores[1])
  assert [each.mean for each in excess] == [0.25, -0.5]
  expected = np.std([0, -1, -1, 0], ddof=1) / 2
  assert excess[0].stderr == pytest.approx(expected)
  assert not limits.holds(scores[1])
  # The loss rises by 1.25 where .5 may.
  assert [each.mean for each in limits.excess(scores[0])] == [-0.25, 0.75]
  between = weighted_sum(
    NAMES, [score([1, 1, 0, 0]), score([1.2, 2.0], unit="nats/token")], (1, 1)
  )
  assert limits.holds(between)
  first = limits.excess(between.first(3))
  assert first[0].mean == pytest.approx(0.0 - 0.25)


def test_a_split_that_is_too_small_says_so():
  random = np.random.default_rng(0)
  last = random.integers(0, 2, 50)
  other = last.copy()
  other[:4] = 1 - other[:4]
  alone = [
    {
      "acc": weighted_sum(("a",), [score(values)], (1.0,)),
      "gold": weighted_sum(
        ("a",), [score(values + 3.0, unit="bits/byte")], (1.0,)
      ),
    }
    for values in (other, last)
  ]
  alone[0]["gold"] = weighted_sum(
    ("a",), [score(last + 3.5, unit="bits/byte")], (1.0,)
  )
  found = Resolution.of([scores["acc"] for scores in alone])
  difference = statistics.difference(alone[0]["acc"], alone[1]["acc"])
  assert found.spread == pytest.approx(abs(difference.mean))
  assert found.detectable == difference.detectable()
  assert not found.is_enough
  goal = Goal(("a",), (1.0,), "acc", (), 0, 0, "")
  told = resolution_text(alone, goal)
  assert "too small a split to tell" in told
  assert "config.metric='gold'" in told
  assert "they are 0.5000 apart (bits/byte)" in told
  gold = resolution_text(alone, goal._replace(metric="gold"))
  assert "too small" not in gold


def test_a_plan_expects_what_one_answer_in_ten_would_tell():
  told = expected_resolution(GOAL, [250, 250])
  stderr = math.sqrt(0.1 / 500)
  expected = statistics.Estimate(0, stderr, 500).detectable()
  assert f"about {expected:.3f}" in told
  assert expected_resolution(GOAL._replace(metric="gold"), [250, 250]) == ""
