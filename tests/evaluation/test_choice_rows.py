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
  plain, branching = rows_of(MIXED, padding=99)
  assert plain.item_R.tolist() == [1, 4, 4]
  assert branching.item_R.tolist() == [0, 3, 2]
  assert plain.is_plain
  assert not branching.is_plain
  # A choice of one token takes no place.
  assert plain.branch_RxL[0].tolist() == [0] * 16 + [PADDING] * 8
  assert branching.branch_RxL[0].tolist() == [0, 0, 2, 3, 3] + [PADDING] * 19
  assert branching.tokens_RxL[0].tolist() == [1, 2, 4, 6, 7] + [99] * 19
  assert [r.inputs for r in (plain, branching)] == [16 + 20 + 15, 5 + 3 + 17]


def shapes(lengths, **options):
  """Of rows whose prompts have so many tokens, with two letters each."""
  items = [some([1] * length, [7], [8]) for length in lengths]
  found = rows_of(items, **options)
  assert sorted(row for each in found for row in each.item_R) == [
    *range(len(items))
  ]
  return [(*each.tokens_RxL.shape, each.target_RxT.shape[1]) for each in found]


def test_lengths_are_four_an_octave():
  lengths = [1, 17, 64, 65, 128, 129, 161, 224, 225, 257, 512, 513]
  found = [shapes([length])[0][1] for length in lengths]
  wanted = [8, 24, 64, 80, 128, 160, 192, 224, 256, 320, 512, 640]
  assert found == wanted
  assert shapes([17], parts=16)[0][1] == 32


def test_few_rows_are_padded_rather_than_compiled_apart():
  assert shapes([16] * 32 + [30]) == [(33, 32, 4)]
  assert shapes([16] * 33 + [30]) == [(33, 16, 4), (1, 32, 4)]
  # Each step of a few counts.
  assert shapes([16] * 20 + [32] + [48]) == [(21, 32, 4), (1, 48, 4)]


def test_targets_are_few_and_can_be_shared_out():
  assert shapes([5], parts=8) == [(1, 8, 8)]
  one = some([1], [2] * 3, [3] * 6)
  assert rows_of([one])[0].target_RxT.shape == (1, 16)


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
