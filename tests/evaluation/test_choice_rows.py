"""Rows of tokens in which choices are scored."""

import numpy as np
import pytest

from jaxmerge.evaluation.choice_rows import PADDING, rows_of, sums_by_item
from jaxmerge.evaluation.choice_scores import Encoded


def some(prompt, *choices):
  arrays = tuple(np.array(choice, np.int32) for choice in choices)
  return Encoded(np.array(prompt, np.int32), arrays, False)


MIXED = [
  some([1, 2], [3], [4, 5], [6, 7, 8]),
  some(range(10, 26), [7], [8]),
  some(range(10, 26), [7], [8, 9]),
  some([9], [3, 3], [3, 4]),
  some([5], range(20, 40), range(30, 45)),  # no shorter in one row
]
EVERYTHING = {
  (number, choice): ids.tolist()
  for number, one in enumerate(MIXED)
  for choice, ids in enumerate(one.choices)
}


def seen_from(rows, row, place):
  """The tokens that an input sees, itself among them, and their positions."""
  branches_L = rows.branch_RxL[row]
  allowed = {0, int(branches_L[place])}
  places = [k for k in range(place + 1) if int(branches_L[k]) in allowed]
  return [
    rows_RxL[row, places].tolist()
    for rows_RxL in (rows.tokens_RxL, rows.position_RxL)
  ]


def targets_of(rows):
  """(row, target, item, choice) of each."""
  for row, target in zip(*np.nonzero(rows.choice_RxT != PADDING)):
    yield row, target, int(rows.item_R[row]), int(rows.choice_RxT[row, target])


@pytest.mark.parametrize("shares", [True, False])
def test_a_target_sees_its_prompt_and_its_own_choice_alone(shares):
  seen = {}
  for rows in rows_of(MIXED, shares=shares, padding=99):
    for row, target, number, choice in targets_of(rows):
      place = rows.input_RxT[row, target]
      tokens, positions = seen_from(rows, row, place)
      before = seen.setdefault((number, choice), [])
      assert tokens == [*MIXED[number].prompt.tolist(), *before]
      assert positions == list(range(len(tokens)))
      if rows.is_plain:
        assert tokens == rows.tokens_RxL[row, : place + 1].tolist()
      before.append(int(rows.target_RxT[row, target]))
  assert seen == EVERYTHING


def test_choices_share_a_row_where_that_takes_less():
  plain, short, long, other = rows_of(MIXED, padding=99)
  assert plain.item_R.tolist() == [1, 4]
  assert short.item_R.tolist() == [0, 3]
  assert [*long.item_R, *other.item_R] == [4, 2]
  shapes = [r.tokens_RxL.shape for r in (plain, short, long, other)]
  assert shapes == [(2, 16), (2, 16), (1, 32), (1, 32)]
  assert [r.is_plain for r in (plain, short, long, other)] == [1, 0, 1, 0]
  # A choice of one token takes no place.
  assert plain.branch_RxL[0].tolist() == [0] * 16
  assert short.branch_RxL[0].tolist() == [0, 0, 2, 3, 3] + [PADDING] * 11
  assert short.tokens_RxL[0].tolist() == [1, 2, 4, 6, 7] + [99] * 11
  assert [r.inputs for r in (short, other)] == [5 + 3, 17]


def test_each_choice_may_have_its_own_row():
  found = rows_of(MIXED, shares=False)
  assert all(rows.is_plain for rows in found)
  assert sum(len(rows.item_R) for rows in found) == len(EVERYTHING)
  inputs = sum(
    len(one.prompt) + len(ids) - 1 for one in MIXED for ids in one.choices
  )
  assert sum(rows.inputs for rows in found) == inputs


def test_both_kinds_of_rows_give_the_same_sums():
  """A made-up model, whose value depends on all tokens before a target."""

  def values(rows):
    values_RxT = np.full(rows.choice_RxT.shape, np.nan)
    for row, target, *_ in targets_of(rows):
      before, _ = seen_from(rows, row, rows.input_RxT[row, target])
      weighed = np.dot(before, range(1, len(before) + 1))
      values_RxT[row, target] = np.sin(
        7.0 * rows.target_RxT[row, target] + weighed
      )
    return values_RxT

  def sums(shares):
    found = rows_of(MIXED, shares=shares)
    return sums_by_item(found, [*map(values, found)])

  np.testing.assert_allclose(sums(True), sums(False), rtol=1e-12)
  assert np.isneginf(sums(True)[1, 2])
  expected = np.sin(7 * 3 + 1 + 2 * 2)
  assert sums(True)[0, 0] == pytest.approx(expected)
