"""Soups: members and weights by loss."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.errors import InputError
from jaxmerge.merging import coefficients
from jaxmerge.merging.soups import greedy_soup, metric_weights


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
  assert metric_weights([1.0, 2.0], 1.0) == pytest.approx([2 / 3, 1 / 3])
  assert metric_weights([1.0, 2.0, 4.0], 0.0) == pytest.approx([1 / 3] * 3)
  assert metric_weights([3.0, 2.0], 1e6) == [0.0, 1.0]
  with pytest.raises(InputError):
    metric_weights([1.0, -1.0], 1.0)


def test_wma_and_the_secant_by_hand():
  assert coefficients.wma(3) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
  found = coefficients.secant(5, 2, 0.5)
  assert found == pytest.approx([0, -0.25, -0.25, 0.75, 0.75])
  assert coefficients.secant(4, 2, 0.0) == [0, 0, 0.5, 0.5]
  with pytest.raises(InputError, match="two windows of 3"):
    coefficients.secant(5, 3, 0.5)
