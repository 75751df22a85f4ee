"""Rows of tokens in which choices are scored, a prompt once for many of them.

N items, C choices of an item at most, R rows, L inputs of a row, T targets.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxmerge.evaluation.choice_scores import Encoded

MOST_PARTS = 16  # that a row can be shared out to
_STEP = 8  # lengths of rows are multiples of it
_FEWEST = 4  # targets of a row, or so many times a power of two
# Inputs of padding that cost no more than to compile one more program.
_CHEAP = 512
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
  encoded: Sequence[Encoded],
  *,
  shares: bool = True,
  padding: int = 0,
  parts: int = 1,
) -> list[Rows]:
  """Rows by their length, so that each is compiled once.

  Lengths are multiples of 8 up to 64, then four from one power of two to the
  next; those of few rows are padded to the next one. The choices of an item
  share a row where that takes fewer inputs than a row each, padding and all. A
  row may be longer than the model's context, no text in it is. Plain rows are
  apart from others.

  Args:
    shares: choices may share a row.
    padding: a token that nothing sees.
    parts: that a row's inputs, and its targets, can be shared out to; a power
      of two, MOST_PARTS at most.
  """

  def length(item: Encoded, choices: Iterable[int]) -> int:
    """8, 16 ... 64, 80, 96, 112, 128, 160 ...: a multiple of the parts."""
    inputs = _inputs(item, choices)
    step = max(_STEP, parts, (1 << (inputs - 1).bit_length()) // 8)
    return -(-inputs // step) * step

  plain: dict[int, list[_Place]] = {}
  branching: dict[int, list[_Place]] = {}
  for number, item in enumerate(encoded):
    everything = range(len(item.choices))
    apart = [range(choice, choice + 1) for choice in everything]
    takes_fewer = length(item, everything) < sum(
      length(item, each) for each in apart
    )
    for choices in [everything] if shares and takes_fewer else apart:
      more = _inputs(item, choices) - len(item.prompt)
      kind = branching if len(choices) > 1 and more else plain
      kind.setdefault(length(item, choices), []).append((number, choices))
  return [
    _rows(encoded, places, inputs, padding, max(_FEWEST, parts))
    for kind in (plain, branching)
    for inputs, places in _programs(kind)
  ]


def _programs(
  places: Mapping[int, Sequence[_Place]],
) -> Iterator[tuple[int, list[_Place]]]:
  """Lengths, and what is padded to each of them."""
  lengths = sorted(places)
  waiting: list[_Place] = []
  padding = 0.0
  for length, longer in zip(lengths, [*lengths[1:], math.inf]):
    waiting += places[length]
    padding += len(waiting) * (longer - length)
    if padding > _CHEAP:
      yield length, waiting
      waiting, padding = [], 0.0


def _inputs(item: Encoded, choices: Iterable[int]) -> int:
  return len(item.prompt) + sum(len(item.choices[c]) - 1 for c in choices)


def _rows(
  encoded: Sequence[Encoded],
  places: Sequence[_Place],
  length: int,
  padding: int,
  targets: int,
) -> Rows:
  most = max(
    sum(len(encoded[n].choices[c]) for c in each) for n, each in places
  )
  while targets < most:
    targets *= 2
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
