import dataclasses
import math

import numpy as np
import pytest

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


def test_a_score_differs_from_itself_by_exactly_nothing():
  one = score([2.0, 4.0, 3.0], [4, 8, 5], [0, 1, 1])
  found = statistics.difference(one, one)
  assert found == (0.0, 0.0, 2)
  assert found.interval() == (0.0, 0.0)
  assert found.p_value == 1.0
  gone = one.values_N - one.values_N
  assert statistics.bootstrap(gone, one, seed=0) == (0.0, 0.0)


def test_one_cluster_shows_nothing():
  found = statistics.ratio(
    np.ones(3), score([2.0, 4.0, 3.0], [4, 8, 5], [7] * 3)
  )
  assert found.clusters == 1
  assert found.p_value == 1.0
  assert found.interval() == (-math.inf, math.inf)
  assert found.detectable() == math.inf
  with pytest.raises(ValueError, match="no number of items"):
    found.items_needed(0.1, 3)


def test_a_change_that_is_the_same_everywhere_is_no_chance():
  """As sure as that many coins that all show heads; of answers McNemar's."""
  ones = np.ones(12)
  for count in (3, 5, 6, 12):
    a = score(2 * ones[:count], ones[:count], range(count))
    b = score(ones[:count], ones[:count], range(count))
    found = statistics.difference(a, b)
    assert (found.mean, found.stderr) == (1.0, 0.0)
    exact = statistics.mcnemar(ones[:count] > 0, ones[:count] < 0)
    assert found.p_value == pytest.approx(exact.p_value, rel=1e-12)
    assert (found.p_value < 0.05) == (count > 5)


def test_what_both_models_find_hard_cancels():
  random = np.random.default_rng(3)
  hard = random.normal(300, 100, size=30)
  a = score(hard - 1, [100] * 30, range(30))
  b = dataclasses.replace(a, values_N=hard)
  estimate = statistics.difference(a, b)
  assert math.isclose(estimate.mean, -0.01)
  assert estimate.stderr < 1e-12
  assert _mean(a).stderr > 0.1
