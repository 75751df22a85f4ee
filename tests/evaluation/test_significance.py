"""Coverage of intervals, and tests of significance against other libraries.

N items, C clusters, S simulated studies.
"""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jaxmerge.evaluation import statistics
from jaxmerge.evaluation.ready_tasks import TaskScores
from jaxmerge.evaluation.score import Score
from jaxmerge.evaluation.task_config import METRICS
from jaxmerge.evaluation.task_tables import compared
from jaxmerge.reporting.evaluation_text import tables_text

CLUSTERS = (12, 38, 200)
SHIFT = -0.05


def study(random, clusters, shift):
  """Two models on documents of 3 to 8 sequences of unequal length.

  The sequences of a document rise and fall together; the first model is
  better by `shift` nats/token in expectation.
  """
  documents_N = np.repeat(
    np.arange(clusters), random.integers(3, 9, size=clusters)
  )
  count = len(documents_N)
  weights_N = random.integers(20, 100, size=count)
  hard_N = random.normal(3, 1, size=clusters)[documents_N]
  changed_N = random.normal(shift, 0.1, size=clusters)[documents_N]
  changed_N = changed_N + random.normal(0, 0.1, size=count)
  last, merged = (
    Score(values_N, weights_N, documents_N, "nats/token", "minimize", 0)
    for values_N in (hard_N * weights_N, (hard_N + changed_N) * weights_N)
  )
  return merged, last


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_intervals_hold_what_is_true(clusters):
  random = np.random.default_rng(clusters)
  inside, plain = 0, 0
  for _ in range(2000):
    found = statistics.difference(*study(random, clusters, SHIFT))
    low, high = found.interval()
    inside += low <= SHIFT <= high
    plain += abs(found.mean - SHIFT) <= 1.96 * found.stderr
  assert 0.93 <= inside / 2000 <= 0.97
  assert plain < inside or clusters > 100
  if clusters == 12:
    assert plain / 2000 < 0.93  # what Student's t is for


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_resampled_intervals_hold_what_is_true(clusters):
  random = np.random.default_rng(clusters)
  inside = 0
  for seed in range(500):
    merged, last = study(random, clusters, SHIFT)
    low, high = statistics.bootstrap(
      merged.values_N - last.values_N, last, seed=seed, resamples=500
    )
    inside += low <= SHIFT <= high
  # Within two standard errors of 500 studies of the same bounds.
  assert 0.91 <= inside / 500 <= 0.99


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_models_that_are_alike_are_told_apart_once_in_twenty(clusters):
  random = np.random.default_rng(clusters + 1)
  studies = 10_000 if clusters < 100 else 5000
  found = sum(
    statistics.difference(*study(random, clusters, 0.0)).p_value < 0.05
    for _ in range(studies)
  )
  assert 0.04 <= found / studies <= 0.06


def test_items_that_are_alike_are_no_more_evidence():
  """Without clusters, the same models are told apart far too often."""
  random = np.random.default_rng(3)
  found = 0
  for _ in range(500):
    merged, last = study(random, 38, 0.0)
    alone = Score(
      merged.values_N,
      merged.weights_N,
      np.arange(len(merged.values_N)),
      "",
      "minimize",
      0,
    )
    found += statistics.difference(alone, last).p_value < 0.05
  assert found / 500 > 0.1


def test_p_values_and_intervals_are_those_of_a_t_test():
  random = np.random.default_rng(4)
  values_N = random.normal(0.1, 0.3, size=15)
  one = Score(values_N, np.ones(15), np.arange(15), "", "minimize", 0)
  found = statistics.ratio(values_N, one)
  expected = stats.ttest_1samp(values_N, 0.0)
  assert math.isclose(found.p_value, expected.pvalue, rel_tol=1e-9)
  for level in (0.5, 0.95, 0.99):
    bounds = expected.confidence_interval(level)
    np.testing.assert_allclose(found.interval(level), bounds, rtol=1e-9)


def test_what_is_detectable_is_detected_four_times_in_five():
  """By the noncentral t distribution, the power of the t test."""
  for clusters in (5, 12, 38, 200):
    found = statistics.Estimate(0.0, 0.02, clusters)
    for power in (0.5, 0.8, 0.95):
      shift = found.detectable(power) / found.stderr
      critical = stats.t.ppf(0.975, clusters - 1)
      power_there = stats.nct.sf(critical, clusters - 1, shift)
      assert abs(power_there - power) < 0.03 + 0.3 / clusters
  many = statistics.Estimate(0.0, 0.02, 10**6)
  assert math.isclose(
    many.detectable(), (1.95996 + 0.84162) * 0.02, rel_tol=1e-4
  )


def test_so_many_items_are_needed_and_no_fewer():
  found = statistics.Estimate(0.0, 0.02, 12)
  for effect in (0.2, 0.05, 0.02, 0.003):
    needed = found.items_needed(effect, 12)
    error = lambda n: 0.02 * math.sqrt(12 / n)
    enough = statistics.Estimate(0.0, error(needed), needed).detectable()
    assert enough <= effect
    if needed > 2:
      fewer = statistics.Estimate(0.0, error(needed - 1), needed - 1)
      assert fewer.detectable() > effect
  assert found.items_needed(0.02, 120) == 10 * found.items_needed(0.02, 12)
  with pytest.raises(ValueError, match="no number of items"):
    found.items_needed(0.0, 12)


def test_a_bootstrap_depends_on_its_seed_alone():
  merged, last = study(np.random.default_rng(5), 38, SHIFT)
  values_N = merged.values_N - last.values_N
  one = statistics.bootstrap(values_N, last, seed=1)
  assert statistics.bootstrap(values_N, last, seed=1) == one
  assert statistics.bootstrap(values_N, last, seed=2) != one
  wide = statistics.bootstrap(values_N, last, seed=1, level=0.99)
  assert wide[0] < one[0] < one[1] < wide[1]
  plain = statistics.ratio(values_N, last).interval()
  np.testing.assert_allclose(one, plain, atol=0.15 * (plain[1] - plain[0]))


def test_few_clusters_do_not_make_a_bootstrap_narrow():
  """Plain percentiles of 8 clusters are 0.78 times as wide as Student's."""
  merged, last = study(np.random.default_rng(9), 8, SHIFT)
  values_N = merged.values_N - last.values_N
  low, high = statistics.bootstrap(values_N, last, seed=0, resamples=20_000)
  plain = statistics.ratio(values_N, last).interval()
  assert 0.9 < (high - low) / (plain[1] - plain[0]) < 1.1


def test_a_bootstrap_of_many_clusters_takes_them_in_parts(monkeypatch):
  merged, last = study(np.random.default_rng(6), 50, SHIFT)
  whole = statistics.bootstrap(merged.values_N, last, seed=0, resamples=101)
  monkeypatch.setattr(statistics, "_MOST_DRAWS", 50 * 10)
  parts = statistics.bootstrap(merged.values_N, last, seed=0, resamples=101)
  assert parts == whole


def table(both, gained, lost, neither):
  """Which items two models get right, from how many each."""
  kinds = [(1, 1), (1, 0), (0, 1), (0, 0)]
  counts = (both, gained, lost, neither)
  right = [kind for kind, n in zip(kinds, counts) for _ in range(n)]
  return np.array(right, bool).T


def test_mcnemar_is_the_sum_of_binomial_tails():
  for gained, lost in itertools.product(range(8), range(8)):
    found = statistics.mcnemar(*table(3, gained, lost, 2))
    n, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    assert (found.gained, found.lost) == (gained, lost)
    assert math.isclose(found.p_value, min(1.0, 2 * tail), rel_tol=1e-12)


def test_mcnemar_equals_statsmodels():
  tables = pytest.importorskip("statsmodels.stats.contingency_tables")
  for gained, lost in itertools.product((0, 1, 5, 19, 70), (1, 4, 30, 105)):
    expected = tables.mcnemar([[40, gained], [lost, 20]], exact=True).pvalue
    found = statistics.mcnemar(*table(40, gained, lost, 20)).p_value
    assert math.isclose(found, expected, rel_tol=1e-9)


def test_holm_rejects_what_its_steps_do():
  random = np.random.default_rng(7)
  for count in (1, 2, 5, 12):
    p_M = random.beta(0.5, 5, size=count)
    rejected = set()
    for step, place in enumerate(np.argsort(p_M)):
      if p_M[place] > 0.05 / (count - step):
        break
      rejected.add(place)
    found = statistics.holm(p_M)
    assert {m for m, p in enumerate(found) if p <= 0.05} == rejected
  assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx(
    [0.03, 0.06, 0.06]
  )
  assert statistics.holm([0.9, 0.6]) == [1.0, 1.0]
  assert statistics.holm([]) == []
  for wrong in ([-0.1], [1.1], [math.nan]):
    with pytest.raises(ValueError, match="p-values"):
      statistics.holm(wrong)


def test_holm_equals_statsmodels():
  multitest = pytest.importorskip("statsmodels.stats.multitest")
  random = np.random.default_rng(8)
  for count in (1, 2, 5, 12, 60):
    p_M = np.round(random.beta(0.5, 3, size=count), 2)  # with ties
    expected = multitest.multipletests(p_M, method="holm")[1]
    np.testing.assert_allclose(statistics.holm(p_M), expected, rtol=1e-12)


def test_an_unpaired_test_overlooks_what_a_paired_one_finds():
  """The example of docs/evaluate.md.

  lm-eval's comparator has z = (a - b) / sqrt(se_a^2 + se_b^2), with s / sqrt(n)
  for each accuracy's error.
  """
  right_N, reference_N = table(320, 105, 70, 305)
  count = len(right_N)
  accuracies = right_N.mean(), reference_N.mean()
  errors = [x.std(ddof=1) / math.sqrt(count) for x in (right_N, reference_N)]
  z = (accuracies[0] - accuracies[1]) / math.hypot(*errors)
  assert accuracies == pytest.approx((0.53125, 0.4875))
  assert round(2 * stats.norm.sf(z), 3) == 0.080
  a, b = (
    Score(
      x.astype(float),
      np.ones(count),
      np.arange(count),
      "accuracy",
      "maximize",
      0,
    )
    for x in (right_N, reference_N)
  )
  found = statistics.difference(a, b)
  assert round(found.p_value, 3) == 0.008
  assert found.interval() == pytest.approx((0.0114, 0.0761), abs=5e-5)
  assert round(statistics.mcnemar(right_N, reference_N).p_value, 3) == 0.010


@pytest.mark.parametrize("cluster_size", [1, 2])
def test_few_answers_that_change_are_no_find(cluster_size):
  """Four of 1,000: Student's t says .045, and McNemar's exact test .125."""
  right_N = np.ones(1000)
  worse_N = right_N.copy()
  worse_N[: 4 * cluster_size : cluster_size] = 0
  clusters = np.arange(1000) // cluster_size
  scores = [
    Score(values, np.ones(1000), clusters, "accuracy", "maximize", 0)
    for values in (right_N, worse_N)
  ]
  [table] = compared(
    ["a", "b"], [TaskScores("t", dict.fromkeys(METRICS, scores))]
  )
  row = table.rows[1]
  assert row.mcnemar.p_value == 0.125
  told = tables_text([table], "report")
  if cluster_size == 1:
    assert row.p_value == 0.125
    assert not row.is_significant
    assert "*" not in told
  else:  # McNemar's takes items for independent, which these are not
    assert row.p_value == pytest.approx(0.045, abs=5e-4)
    assert "* p < .05 (Student's t on clusters)" in told
