"""Scores: per-item values with weights, clusters, unit and direction.

N items (sequences, questions), T tasks of a weighted sum.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np

Direction = Literal["minimize", "maximize"]
_T = TypeVar("_T", float, np.ndarray)


@dataclasses.dataclass(frozen=True)
class Score:
  """The score of one model on the items of a split.

  Attributes:
    values_N: float64[N], the summed score of each item.
    weights_N: float or int[N], what each item counts for.
    clusters_N: int[N], which items are alike (of one document, say).
    unit: of the mean, such as "nats/token".
    direction: "minimize" where less is better, else "maximize".
    tokens: spent on this call; a derivative counts as the forward passes that
      it costs.
    extras: the same result in other units, by unit.
  """

  values_N: np.ndarray
  weights_N: np.ndarray
  clusters_N: np.ndarray
  unit: str
  direction: Direction
  tokens: int
  extras: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def mean(self) -> float:
    return float(self.values_N.sum() / self.weights_N.sum())

  def first(self, count: int) -> "Score":
    """The score of the first items alone, in its own unit alone."""
    return dataclasses.replace(
      self,
      values_N=self.values_N[:count],
      weights_N=self.weights_N[:count],
      clusters_N=self.clusters_N[:count],
      extras={},
    )


class Part(NamedTuple):
  """A task of a weighted sum.

  Attributes:
    name: of the task.
    factor: of its mean in the sum.
    unit, direction: of its mean.
  """

  name: str
  factor: float
  unit: str
  direction: Direction


@dataclasses.dataclass(frozen=True)
class WeightedSum(Score):
  """The sum over tasks t of factor_t mean_t, whose items are independent.

  Items of all tasks stand side by side, in an order in which the first ones are
  a sample of each task.

  Attributes:
    parts: the T tasks.
    part_N: which of them each item is of.
  """

  parts: Sequence[Part] = ()
  part_N: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

  @property
  def mean(self) -> float:
    return sum(
      part.factor * self.of_part(t).mean for t, part in enumerate(self.parts)
    )

  def of_part(self, t: int) -> Score:
    """The score on one of the tasks alone, in its own unit."""
    is_of_N, part = self.part_N == t, self.parts[t]
    return Score(
      self.values_N[is_of_N],
      self.weights_N[is_of_N],
      self.clusters_N[is_of_N],
      part.unit,
      part.direction,
      self.tokens,
    )

  def first(self, count: int) -> "WeightedSum":
    some = super().first(count)
    assert isinstance(some, WeightedSum)
    return dataclasses.replace(some, part_N=self.part_N[:count])


SUM = "weighted sum"


def weighted_sum(
  names: Sequence[str],
  scores: Sequence[Score],
  weights: Sequence[float],
  part_N: np.ndarray | None = None,
) -> WeightedSum:
  """The weighted sum of the scores of T tasks.

  It is to be minimised where all of them are, and else maximised: then what is
  to be minimised is subtracted. So a task of a weight above 0 is to get better,
  of one below 0 worse. Its unit is theirs where it is a mean of scores in one.

  Args:
    names, scores, weights: of each task.
    part_N: the order of the items, by which tasks they are of; None: each
      beginning has about the same share of each task.
  """
  direction = direction_of_sum([score.direction for score in scores])
  parts = [
    Part(
      name,
      weight if score.direction == direction else -weight,
      score.unit,
      score.direction,
    )
    for name, score, weight in zip(names, scores, weights, strict=True)
  ]
  units = {score.unit for score in scores}
  is_mean = len(units) == 1 and min(weights) >= 0
  is_mean = is_mean and math.isclose(sum(weights), 1)
  sizes = [len(score.values_N) for score in scores]
  if part_N is None:
    part_N = np.repeat(np.arange(len(scores)), sizes)[interleaved(sizes)]
  # The inverse of sorting by task: a task's items stay in their order.
  order_N = np.argsort(np.argsort(part_N, kind="stable"))

  def joined(name: str) -> np.ndarray:
    return np.concatenate([getattr(score, name) for score in scores])[order_N]

  return WeightedSum(
    joined("values_N"),
    joined("weights_N"),
    joined("clusters_N"),
    units.pop() if is_mean else SUM,
    direction,
    sum(score.tokens for score in scores),
    parts=parts,
    part_N=part_N,
  )


def direction_of_sum(directions: Sequence[Direction]) -> Direction:
  return "minimize" if set(directions) == {"minimize"} else "maximize"


def interleaved(sizes: Sequence[int]) -> np.ndarray:
  """An order of tasks' items, one task behind the other as they are given.

  The first of each task come first, and every beginning has about the same
  share of each.
  """
  places = [np.arange(size) / size for size in sizes]
  return np.argsort(np.concatenate(places), kind="stable")


def as_loss(values: _T, direction: Direction) -> _T:
  """Values of which less is better; its own inverse."""
  return values if direction == "minimize" else -values


def noun(direction: Direction) -> str:
  """The word for a value: a loss is to be minimised, a score maximised."""
  return "loss" if direction == "minimize" else "score"
