"""Groups of a decoder's parameters that may each have weights of their own.

G groups, L layers.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmerge.errors import InputError, check
from jaxmerge.merging.weight_checks import normalise
from jaxmerge.parallel.rules import is_stacked, leaf_name, named_leaves

EMBEDDINGS = "embeddings"
HEAD = "head"
_EMBEDDINGS = re.compile(r"embed/.*")
_HEAD = re.compile(r"(final_norm|head)/.*")


class Groups(NamedTuple):
  """Which group each parameter belongs to.

  Attributes:
    names_G: one a group.
    of_leaf: like the tree of parameters; an int32 index of the group, or one
      index for each layer of a stack (int32[L]).
    shares_G: part of all parameters that a group holds.
  """

  names_G: tuple[str, ...]
  of_leaf: Any
  shares_G: tuple[float, ...]


def layer_groups(tree: Any, bands: int) -> Groups:
  """The embeddings, `bands` bands of layers by depth, and the head.

  The head is the final norm and, where embeddings are not tied, the output
  projection. Bands are of as equal a number of layers as can be.

  Args:
    tree: parameters of a decoder, arrays or shapes; layers are stacked.
    bands: number of bands, at most one a layer.

  Raises:
    InputError: names that are none of a decoder, or too many bands.
  """
  layers = {
    leaf.shape[0]
    for name, leaf in named_leaves(tree).items()
    if is_stacked(name)
  }
  depth = max(layers, default=0)
  if not 1 <= bands <= depth:
    raise InputError(
      f"the model has {depth} layers: from 1 to {depth} bands, not {bands}"
    )
  names_G = (EMBEDDINGS, *(f"band_{b}" for b in range(bands)), HEAD)
  band_L = (1 + np.arange(depth) * bands // depth).astype(np.int32)
  unknown: list[str] = []
  sizes_G = np.zeros(len(names_G))

  def group(path: Any, leaf: Any) -> np.ndarray:
    name = leaf_name(path)
    if is_stacked(name):
      np.add.at(sizes_G, band_L, math.prod(leaf.shape) / depth)
      return band_L
    index = 0 if _EMBEDDINGS.fullmatch(name) else len(names_G) - 1
    if index and not _HEAD.fullmatch(name):
      unknown.append(f"parameter {name!r} belongs to no group")
    sizes_G[index] += math.prod(leaf.shape)
    return np.asarray(index, np.int32)

  of_leaf = jax.tree_util.tree_map_with_path(group, tree)
  check(unknown)
  shares = (sizes_G / sizes_G.sum()).tolist()
  return Groups(names_G, of_leaf, tuple(shares))


def one_group(tree: Any) -> Groups:
  """All parameters together."""
  return Groups(("",), jax.tree.map(lambda _: np.int32(0), tree), (1.0,))


class WeightGroups(NamedTuple):
  """Weights of their own for groups of parameters.

  Attributes:
    groups: of the parameters.
    weights_GxK: each row sums to one.
  """

  groups: Groups
  weights_GxK: Sequence[Sequence[float]]

  @property
  def mean_weights(self) -> list[float]:
    """Of all parameters together."""
    shares_G = np.array(self.groups.shares_G)
    return (shares_G @ np.array(self.weights_GxK)).tolist()

  @property
  def by_name(self) -> dict[str, Sequence[float]]:
    return dict(zip(self.groups.names_G, self.weights_GxK, strict=True))


def grouped(tree: Any, bands: int, weights: Sequence[float]) -> WeightGroups:
  """Weights as typed: those of the embeddings, of each band, of the head.

  Args:
    tree: shapes of a decoder's parameters.
    bands: bands of layers.
    weights: K for each group, one group after the other.

  Raises:
    InputError: there are not so many layers, or a group's weights are not
      usable.
  """
  groups = layer_groups(tree, bands)
  rows = np.reshape(weights, (len(groups.names_G), -1)).tolist()
  return WeightGroups(groups, [normalise(row) for row in rows])


def layer_groups_problems(text: str, prefix: str) -> list[str]:
  """Says what is wrong with the text of a key `layer_groups`."""
  if not text or (text.isdecimal() and int(text) > 0):
    return []
  return [
    f"{prefix}layer_groups must be empty or a number of bands, as '4', got "
    f"{text!r}"
  ]
