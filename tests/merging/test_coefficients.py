"""Weights without a search: against their definitions and hand values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.errors import InputError
from jaxmerge.merging import coefficients


def _schedule(name, count):
  return coefficients.of_schedule(coefficients.SCHEDULES[name], count)


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
  assert np.dot(coefficients.ema(count, 0.3), numbers) == pytest.approx(average)


def test_lawa_is_the_mean_of_the_newest():
  assert coefficients.lawa(5, 2) == [0, 0, 0, 0.5, 0.5]
  assert coefficients.lawa(2, 3) == [0.5, 0.5]


@given(st.integers(1, 12))
def test_starts_are_distinct_weights_in_order(count):
  found = coefficients.starts(coefficients.MORE_STARTS, count)
  assert found[0] == ("last", coefficients.last(count))
  for label, weights in found:
    assert len(weights) == count
    assert min(weights) >= 0, label
    assert math.fsum(weights) == pytest.approx(1)
  for i, (_, a) in enumerate(found):
    assert all(math.dist(a, b) > 1e-9 for _, b in found[:i])


def test_a_pair_starts_with_its_ends_and_names_nothing_twice():
  found = coefficients.starts(coefficients.PAIR_STARTS, 2)
  assert [weights for _, weights in found][:3] == [[0, 1], [1, 0], [0.5, 0.5]]
  # The linear and cosine schedules and LAWA are the uniform mean of a pair.
  labels = [label for label, _ in found]
  assert labels == ["last", "checkpoint 0", "uniform", "1-sqrt", "ema"]


def test_slopes_need_fewer_starts():
  assert coefficients.default_starts(2, False) == coefficients.PAIR_STARTS
  assert coefficients.default_starts(6, False) == coefficients.MORE_STARTS
  few = coefficients.default_starts(6, True)
  assert len(coefficients.starts(few, 6)) == 3


def test_unknown_starts_are_named():
  with pytest.raises(InputError, match="'lwaa'"):
    coefficients.starts(["last", "lwaa"], 3)
