"""The weights that the parameters of a search's trials stand for.

K checkpoints, G groups of parameters with weights of their own.
"""

import types
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxmerge.bayesopt.space import Simplices, simplices_of
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.model_inputs import own_names
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.merging.group_texts import patterns_of
from jaxmerge.merging.groups import Groups, coarsenings, groups_of
from jaxmerge.simplex.bounds import Bounds, unit_from_weights, weights_from_unit


def groups_of_models(
  checkpoints: Sequence[Checkpoint], text: str
) -> tuple[Groups, Mapping[str, tuple[int, ...]]]:
  """The groups that a text says, and coarser ones that are made of them.

  Patterns are over Hugging Face's names where all checkpoints are of it.

  Raises:
    InputError: the model has no such groups.
  """
  tree = abstract_params(checkpoints[-1].metadata)
  names = own_names(checkpoints) if patterns_of(text) else None
  groups = groups_of(tree, text, names=names)
  return groups, coarsenings(tree, text, names=names)


class Domain(NamedTuple):
  """Maps the parameters of a trial to weights.

  Attributes:
    steps: training step of each checkpoint, increasing.
    groups: of the parameters that have weights of their own.
    bounds: of weights.
    coarser: by name, coarsest first, the index of a coarser group for each of
      the groups; all 0 where they share their weights.
  """

  steps: Sequence[int]
  groups: Groups
  bounds: Bounds
  coarser: Mapping[str, tuple[int, ...]] = types.MappingProxyType({})

  @property
  def names_GxK(self) -> list[list[str]]:
    """Names of a search's parameters: w_0, or band_0/w_0 in a group."""
    prefixes = [f"{group}/" if group else "" for group in self.groups.names_G]
    return [
      [f"{prefix}w_{k}" for k in range(len(self.steps))] for prefix in prefixes
    ]

  @property
  def partitions(self) -> Mapping[str, tuple[int, ...]]:
    """Coarser groups; where none are known, all parameters and each group."""
    count = len(self.groups.names_G)
    shared, own = {"shared": (0,) * count}, {"own": tuple(range(count))}
    return self.coarser or {**shared, **(own if count > 1 else {})}

  def space(self, starts: Sequence[Sequence[float]] | None = None) -> Simplices:
    """The space of the parameters; by default without starts of its own."""
    return simplices_of(self.names_GxK, starts, self.bounds.negative)

  def weights(self, params: Mapping[str, float]) -> list[list[float]]:
    """The checkpoint weights of each group (GxK)."""
    return [
      weights_from_unit([params[name] for name in names], self.bounds)
      for names in self.names_GxK
    ]

  def mean_weights(self, params: Mapping[str, float]) -> list[float]:
    """The weights of all parameters together: those of the groups by size."""
    return self.groups.mean_weights(self.weights(params))

  def params(self, weights_GxK: Sequence[Sequence[float]]) -> dict[str, float]:
    """The parameters of weights within the bounds; the inverse of `weights`."""
    return {
      name: value
      for names, row in zip(self.names_GxK, weights_GxK, strict=True)
      for name, value in zip(
        names, unit_from_weights(row, self.bounds), strict=True
      )
    }

  def moved_within(self, weights_K: Sequence[float]) -> list[float]:
    """Weights, moved towards the last checkpoint where they give it too little.

    Args:
      weights_K: that sum to one, none below zero.
    """
    missing = self.bounds.alpha - weights_K[-1]
    part = missing / (1 - weights_K[-1]) if missing > 0 else 0.0
    moved = [(1 - part) * w for w in weights_K]
    moved[-1] += part
    return moved
