"""Weights without a search: against their definitions and hand values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.errors import InputError
from jaxmerge.merging import weight_rules
from jaxmerge.merging.method import METHODS
from jaxmerge.merging.methods.by_loss import greedy_soup
from jaxmerge.simplex import schedules


def _weights(name, count, **knobs):
  method = METHODS[name]
  return method.function([1 / count] * count, method.knobs(**knobs))


def _by_metric(losses_K, exponent):
  method = METHODS["metric"]
  return method.function(losses_K, None, method.knobs(exponent=exponent))


def _schedule(name, count):
  return schedules.of_schedule(schedules.SCHEDULES[name], count)


def test_schedules_by_hand():
  np.testing.assert_allclose(
    _schedule("1-sqrt", 4), [0.5, 0.2071, 0.1589, 0.1340], atol=5e-5
  )
  np.testing.assert_allclose(
    _schedule("cosine", 4), [0.1464, 0.3536, 0.3536, 0.1464], atol=5e-5
  )
  np.testing.assert_allclose(_schedule("linear", 4), [0.25] * 4)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_ema_is_the_recursion(count):
  numbers = np.arange(1.0, count + 1)
  average = numbers[0]
  for number in numbers[1:]:
    average = 0.3 * number + 0.7 * average
  assert np.dot(_weights("ema", count, decay=0.3), numbers) == pytest.approx(
    average
  )


def test_lawa_is_the_mean_of_the_newest():
  assert _weights("lawa", 5, window=2) == [0, 0, 0, 0.5, 0.5]
  assert _weights("lawa", 2, window=3) == [0.5, 0.5]


@given(st.integers(1, 12))
def test_starts_are_distinct_weights_in_order(count):
  found = weight_rules.starts(weight_rules.MORE_STARTS, count)
  assert found[0] == ("last", [0.0] * (count - 1) + [1.0])
  for label, weights in found:
    assert len(weights) == count
    assert min(weights) >= 0, label
    assert math.fsum(weights) == pytest.approx(1)
  for i, (_, a) in enumerate(found):
    assert all(math.dist(a, b) > 1e-9 for _, b in found[:i])


def test_a_pair_starts_with_its_ends_and_names_nothing_twice():
  found = weight_rules.starts(weight_rules.PAIR_STARTS, 2)
  assert [weights for _, weights in found][:3] == [[0, 1], [1, 0], [0.5, 0.5]]
  # The linear and cosine schedules and LAWA are the uniform mean of a pair.
  labels = [label for label, _ in found]
  assert labels == ["last", "checkpoint 0", "uniform", "1-sqrt", "ema"]


def test_slopes_need_fewer_starts():
  assert weight_rules.default_starts(2, False) == weight_rules.PAIR_STARTS
  assert weight_rules.default_starts(6, False) == weight_rules.MORE_STARTS
  few = weight_rules.default_starts(6, True)
  assert len(weight_rules.starts(few, 6)) == 3


def test_unknown_starts_are_named():
  with pytest.raises(InputError, match="'lwaa'"):
    weight_rules.starts(["last", "lwaa"], 3)


def _bowl(points, target):
  return lambda w: float((np.dot(w, points) - target) ** 2)


def test_greedy_soup_by_hand():
  points = np.array([0.0, 4.0, 10.0])
  loss = _bowl(points, 2.5)
  losses = [loss(np.eye(3)[k]) for k in range(3)]
  # 4 first; with 0 the mean 2 is better; with 10 the mean is 4.67, worse.
  assert greedy_soup(losses, loss) == [0.5, 0.5, 0.0]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.floats(-5, 5))
def test_greedy_soup_is_never_worse_than_its_best_member(points, target):
  loss = _bowl(np.array(points), target)
  losses = [loss(row) for row in np.eye(len(points))]
  assert loss(greedy_soup(losses, loss)) <= min(losses) + 1e-12


def test_a_diverged_checkpoint_never_joins():
  found = greedy_soup([np.nan, 1.0, np.inf], lambda w: 0.0)
  assert found == [0.0, 1.0, 0.0]
  with pytest.raises(InputError):
    greedy_soup([np.nan], lambda w: 0.0)


def test_metric_weights_by_hand():
  assert _by_metric([1.0, 2.0], 1.0) == pytest.approx([2 / 3, 1 / 3])
  assert _by_metric([1.0, 2.0, 4.0], 0.0) == pytest.approx([1 / 3] * 3)
  assert _by_metric([3.0, 2.0], 1e6) == [0.0, 1.0]
  with pytest.raises(InputError):
    _by_metric([1.0, -1.0], 1.0)


def test_wma_and_the_secant_by_hand():
  assert _weights("wma", 3) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
  found = _weights("secant", 5, window=2, extrapolation=0.5)
  assert found == pytest.approx([0, -0.25, -0.25, 0.75, 0.75])
  assert _weights("secant", 4, window=2, extrapolation=0.0) == [0, 0, 0.5, 0.5]
  with pytest.raises(InputError, match="two windows of 3"):
    _weights("secant", 5, window=3, extrapolation=0.5)
