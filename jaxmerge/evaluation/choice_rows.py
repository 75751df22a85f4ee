"""Rows of tokens in which choices are scored, a prompt once for many of them.

N items, C choices of an item at most, R rows, L inputs of a row, T targets.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxmerge.evaluation.choice_scores import Encoded

SHORTEST = 16  # inputs, and targets, of a row
PADDING = -1  # branch of an input that nothing sees, choice of no target
# An item and which of its choices are in a row.
_Place = tuple[int, range]


class Rows(NamedTuple):
  """Rows of one length, each with the prompt of an item and choices behind it.

  A choice's last token is no input, so choices of one token, such as letters,
  take no more than their prompt. Input k is seen from q if k <= q and its
  branch is 0 or that of q.

  Attributes:
    tokens_RxL: int32 inputs, padded at the end.
    branch_RxL: int32, 0 for the prompt, c + 1 for choice c, else PADDING. A
      choice that is alone in its row is of branch 0 too.
    position_RxL: int32, of a token in its own text, below the model's context.
    input_RxT: int32, the input from which a target is predicted.
    target_RxT: int32, the tokens of choices, padded at the end.
    choice_RxT: int32, of which they are, else PADDING.
    item_R: int32.
  """

  tokens_RxL: np.ndarray
  branch_RxL: np.ndarray
  position_RxL: np.ndarray
  input_RxT: np.ndarray
  target_RxT: np.ndarray
  choice_RxT: np.ndarray
  item_R: np.ndarray

  @property
  def is_plain(self) -> bool:
    """Says whether every input sees all before it, at its place in the row."""
    return not (self.branch_RxL > 0).any()

  @property
  def inputs(self) -> int:
    """Inputs that are no padding."""
    return int((self.branch_RxL != PADDING).sum())


def rows_of(
  encoded: Sequence[Encoded], *, shares: bool = True, padding: int = 0
) -> list[Rows]:
  """Rows by their length, so that each is compiled once, the shortest first.

  Lengths are powers of two, from 16. The choices of an item share a row where
  that takes fewer inputs than a row each, padding and all. A row may be longer
  than the model's context, no text in it is. Plain rows are apart from others.

  Args:
    shares: choices may share a row.
    padding: a token that nothing sees.
  """
  places: dict[tuple[int, bool], list[_Place]] = {}
  for number, item in enumerate(encoded):
    everything = range(len(item.choices))
    apart = [range(choice, choice + 1) for choice in everything]
    takes_fewer = _length(_inputs(item, everything)) < sum(
      _length(_inputs(item, each)) for each in apart
    )
    for choices in [everything] if shares and takes_fewer else apart:
      inputs = _inputs(item, choices)
      has_branches = len(choices) > 1 and inputs > len(item.prompt)
      key = _length(inputs), has_branches
      places.setdefault(key, []).append((number, choices))
  return [
    _rows(encoded, places[key], key[0], padding) for key in sorted(places)
  ]


def _inputs(item: Encoded, choices: Iterable[int]) -> int:
  return len(item.prompt) + sum(len(item.choices[c]) - 1 for c in choices)


def _length(count: int) -> int:
  return max(SHORTEST, 1 << (count - 1).bit_length())


def _rows(
  encoded: Sequence[Encoded],
  places: Sequence[_Place],
  length: int,
  padding: int,
) -> Rows:
  targets = _length(
    max(sum(len(encoded[n].choices[c]) for c in each) for n, each in places)
  )
  wide, narrow = (len(places), length), (len(places), targets)
  rows = Rows(
    tokens_RxL=np.full(wide, padding, np.int32),
    branch_RxL=np.full(wide, PADDING, np.int32),
    position_RxL=np.zeros(wide, np.int32),
    input_RxT=np.zeros(narrow, np.int32),
    target_RxT=np.full(narrow, padding, np.int32),
    choice_RxT=np.full(narrow, PADDING, np.int32),
    item_R=np.array([number for number, _ in places], np.int32),
  )
  for row, (number, choices) in enumerate(places):
    prompt = encoded[number].prompt
    stop, last = len(prompt), 0
    rows.tokens_RxL[row, :stop] = prompt
    rows.branch_RxL[row, :stop] = 0
    rows.position_RxL[row, :stop] = np.arange(stop)
    for choice in choices:
      ids = encoded[number].choices[choice]
      start, stop = stop, stop + len(ids) - 1
      rows.tokens_RxL[row, start:stop] = ids[:-1]
      rows.branch_RxL[row, start:stop] = choice + 1 if len(choices) > 1 else 0
      rows.position_RxL[row, start:stop] = len(prompt) + np.arange(len(ids) - 1)
      first, last = last, last + len(ids)
      # The first token of a choice is predicted from the prompt's last.
      rows.input_RxT[row, first] = len(prompt) - 1
      rows.input_RxT[row, first + 1 : last] = np.arange(start, stop)
      rows.target_RxT[row, first:last] = ids
      rows.choice_RxT[row, first:last] = choice
  return rows


def sums_by_item(
  rows: Sequence[Rows], values: Sequence[np.ndarray]
) -> np.ndarray:
  """Sums of targets' values, R x T for each of `rows`, as float64[N, C].

  Choices that an item does not have are -inf, which never wins.
  """
  items = 1 + max(int(each.item_R.max()) for each in rows)
  choices = 1 + max(int(each.choice_RxT.max()) for each in rows)
  sums_NxC = np.zeros((items, choices))
  has_NxC = np.zeros((items, choices), bool)
  for each, values_RxT in zip(rows, values, strict=True):
    row_Q, target_Q = np.nonzero(each.choice_RxT != PADDING)
    where = each.item_R[row_Q], each.choice_RxT[row_Q, target_Q]
    np.add.at(sums_NxC, where, np.float64(values_RxT[row_Q, target_Q]))
    has_NxC[where] = True
  return np.where(has_NxC, sums_NxC, -np.inf)
