import dataclasses
import math

import numpy as np

from jaxmerge.evaluation import statistics
from jaxmerge.evaluation.score import Score


def score(losses, targets, documents):
  return Score(
    values_N=np.asarray(losses, np.float64),
    weights_N=np.asarray(targets),
    clusters_N=np.asarray(documents),
    unit="nats/token",
    direction="minimize",
    tokens=sum(targets),
  )


def _mean(found):
  return statistics.ratio(found.values_N, found)


def test_a_mean_weighs_its_items():
  one = score([2.0, 4.0], [4, 8], [0, 1])
  assert one.mean == 0.5
  assert score([2.0, 6.0], [4, 8], [0, 1]).first(1).mean == 0.5


def test_standard_error_of_equal_single_document_clusters():
  """With one sequence of equal length a document it is s / sqrt(n)."""
  values = np.random.default_rng(0).normal(2.0, 0.3, size=40)
  estimate = _mean(score(values * 10, [10] * 40, range(40)))
  assert math.isclose(estimate.mean, values.mean())
  expected = values.std(ddof=1) / math.sqrt(40)
  assert math.isclose(estimate.stderr, expected, rel_tol=1e-9)


def test_copies_within_a_document_add_no_certainty():
  values = np.random.default_rng(1).normal(2.0, 0.3, size=20)
  once = _mean(score(values * 10, [10] * 20, range(20)))
  copied = _mean(
    score(np.repeat(values, 4) * 10, [10] * 80, np.repeat(range(20), 4))
  )
  assert math.isclose(once.stderr, copied.stderr, rel_tol=1e-9)


def test_coverage_of_the_clustered_error():
  """About 95 % of intervals of two errors hold the true difference."""
  random = np.random.default_rng(2)
  inside = 0
  for _ in range(400):
    documents = np.repeat(np.arange(40), random.integers(1, 6, size=40))
    targets = random.integers(20, 100, size=len(documents))
    shift = random.normal(-0.05, 0.1, size=40)[documents]
    noise = random.normal(0, 0.1, size=len(documents))
    b = score(3.0 * targets, targets, documents)
    a = score((3.0 + shift + noise) * targets, targets, documents)
    estimate = statistics.difference(a, b)
    inside += abs(estimate.mean + 0.05) < 2 * estimate.stderr
  assert 0.91 < inside / 400 < 0.98


def test_a_score_differs_from_itself_by_exactly_nothing():
  one = score([2.0, 4.0, 3.0], [4, 8, 5], [0, 1, 1])
  assert statistics.difference(one, one) == (0.0, 0.0)


def test_what_both_models_find_hard_cancels():
  random = np.random.default_rng(3)
  hard = random.normal(300, 100, size=30)
  a = score(hard - 1, [100] * 30, range(30))
  b = dataclasses.replace(a, values_N=hard)
  estimate = statistics.difference(a, b)
  assert math.isclose(estimate.mean, -0.01)
  assert estimate.stderr < 1e-12
  assert _mean(a).stderr > 0.1
