"""Scores: per-item values with weights, clusters, unit and direction.

N items (sequences, questions).
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypeVar

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


def as_loss(values: _T, direction: Direction) -> _T:
  """Values of which less is better; its own inverse."""
  return values if direction == "minimize" else -values


def noun(direction: Direction) -> str:
  """The word for a value: a loss is to be minimised, a score maximised."""
  return "loss" if direction == "minimize" else "score"
