"""Greedy soups and weights by loss, for any losses."""

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.merging.methods import by_loss
from jaxmerge.merging.methods.by_loss import greedy_soup
from tests.properties.random_trees import laws

many = hypothesis.settings(laws, max_examples=200)


def metric_weights(losses_K, exponent):
  knobs = by_loss.MetricKnobs(exponent=exponent)
  return by_loss.metric_weights(losses_K, None, knobs)


def _members(weights):
  return frozenset(k for k, w in enumerate(weights) if w)


@st.composite
def tables(draw):
  """A loss for every set of one to five checkpoints; ties are likely."""
  count = draw(st.integers(1, 5))
  loss = st.integers(0, 4).map(float) | st.floats(width=32)
  size = 2**count
  row = draw(st.lists(loss, min_size=size, max_size=size))
  hypothesis.assume(any(np.isfinite(row[2**k]) for k in range(count)))
  return count, lambda members: row[sum(2**k for k in members)]


@many
@given(tables())
def test_a_greedy_soup_is_never_worse_than_its_best_member(case):
  count, table = case
  losses = [table({k}) for k in range(count)]
  asked = []

  def loss(weights):
    asked.append(_members(weights))
    return table(asked[-1])

  members = _members(greedy_soup(losses, loss))
  assert table(members) <= min(loss for loss in losses if np.isfinite(loss))
  assert all(np.isfinite(losses[k]) for k in members)
  # One evaluation for each but the best, none of a soup of one.
  assert len(asked) == np.isfinite(losses).sum() - 1
  assert all(len(each) > 1 for each in asked)


@many
@given(tables())
def test_no_checkpoint_left_out_would_have_joined(case):
  count, table = case
  losses = [table({k}) for k in range(count)]
  members = _members(greedy_soup(losses, lambda w: table(_members(w))))
  order = sorted(range(count), key=lambda k: losses[k])
  soup = set()
  for k in (k for k in order if np.isfinite(losses[k])):
    joins = not soup or table(soup | {k}) <= table(soup)
    assert (k in members) == joins
    soup |= {k} & members


@many
@given(tables())
def test_a_greedy_soup_is_a_plain_mean(case):
  count, table = case
  losses = [table({k}) for k in range(count)]
  weights = greedy_soup(losses, lambda w: table(_members(w)))
  size = len(_members(weights))
  assert len(weights) == count
  assert {w for w in weights if w} == {1 / size}


LOSSES = st.lists(st.floats(0.1, 20), min_size=1, max_size=6)


@many
@given(LOSSES, st.floats(0, 20), st.floats(0.1, 10))
def test_weights_by_loss_know_no_unit_and_no_order(losses, penalty, unit):
  found = metric_weights(losses, penalty)
  scaled = metric_weights([unit * loss for loss in losses], penalty)
  backwards = metric_weights(losses[::-1], penalty)[::-1]
  assert sum(found) == pytest.approx(1)
  np.testing.assert_allclose(found, scaled, rtol=1e-12)
  np.testing.assert_allclose(found, backwards, rtol=1e-12)


@many
@given(LOSSES, st.floats(0, 20))
def test_a_lower_loss_never_weighs_less(losses, penalty):
  found = metric_weights(losses, penalty)
  by_loss = [found[k] for k in np.argsort(losses, kind="stable")]
  assert all(a >= b for a, b in zip(by_loss, by_loss[1:]))
