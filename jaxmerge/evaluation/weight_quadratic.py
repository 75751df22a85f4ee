"""The quadratic model of a merged loss that the trials of a search tell.

G groups of parameters, K checkpoints, D = G K.
"""

import functools
from typing import NamedTuple

import numpy as np
from optuna.trial import FrozenTrial

from jaxmerge.evaluation.measurements import read_measurement
from jaxmerge.evaluation.search_method import Findings
from jaxmerge.simplex.quadratic import Choice, choose, minimise, precision
from jaxmerge.simplex.quadratic_model import Quadratic, Region


class Solved(NamedTuple):
  """A step, and the loss that the noise of the split costs, nats/token."""

  choice: Choice
  excess: float


class WeightQuadratic(NamedTuple):
  """Derivatives at a trial, and what they are solved in.

  Attributes:
    first: around the trial whose curvature is measured.
    here: around the trial from which a step goes, with the curvature of
      `first`; the same one for a first step.
    region: of weights.
    partitions: of groups that may change together.
  """

  first: Quadratic
  here: Quadratic
  region: Region
  partitions: tuple[tuple[str, tuple[int, ...]], ...]

  @classmethod
  def at(cls, found: Findings, base: FrozenTrial) -> "WeightQuadratic":
    """With the gradients of `base`, which has measured some."""
    domain = found.domain
    around: list[Quadratic] = []
    for trial in found.trials[: base.number + 1]:
      measured = read_measurement(trial, found.folder)
      if measured is None:
        continue
      curvature_DxD = measured.curvature_DxD
      if curvature_DxD is None:
        curvature_DxD = around[0].curvature
      weights_GxK = np.array(domain.weights(trial.params))
      around.append(
        _Hashed(
          weights_GxK,
          measured.gradients_CxGxK,
          measured.counts_C,
          curvature_DxD,
        )
      )
    region = Region(*domain.bounds.region(len(domain.steps)))
    partitions = tuple(domain.partitions.items())
    return cls(around[0], around[-1], region, partitions)

  def solved(self) -> Solved:
    """A step to the optimum of the model.

    Documents left out choose the partition and the ridge once, for the first
    step: a later one goes on towards the same optimum, with better derivatives.
    """
    return _solved(self)


class _Hashed(Quadratic):
  """A quadratic that a cache knows again: searchers ask again and again."""

  def contents(self) -> tuple[bytes, ...]:
    return tuple(np.asarray(part).tobytes() for part in self)

  def __hash__(self) -> int:
    return hash(self.contents())

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Hashed) and self.contents() == other.contents()


@functools.lru_cache(maxsize=4)
def _solved(model: WeightQuadratic) -> Solved:
  partitions = dict(model.partitions)
  choice = choose(model.first, model.region, partitions)
  partition = partitions[choice.partition]
  if model.here is not model.first:
    step = minimise(
      model.here,
      model.region,
      choice.ridge,
      partition,
      model.first.weights_GxK,
    )
    choice = choice._replace(**step._asdict())
  found = precision(model.here, model.region, partition, choice.ridge)
  return Solved(choice, found.excess)
