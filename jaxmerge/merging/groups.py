"""Groups of a decoder's parameters that may each have weights of their own.

G groups, L layers, K trees.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmerge.errors import InputError, check
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

  def mean_weights(self, weights_GxK: Sequence[Sequence[float]]) -> list[float]:
    """The weights of all parameters together."""
    return (np.array(self.shares_G) @ np.array(weights_GxK)).tolist()


def layer_groups(tree: Any, bands: int) -> Groups:
  """The embeddings, `bands` bands of layers by depth, and the head.

  The head is the final norm and, where embeddings are not tied, the output
  projection. Bands are of as equal a number of layers as can be.

  Args:
    tree: parameters of a decoder, arrays or shapes; layers are stacked.
    bands: at most one a layer.

  Raises:
    InputError: names that are none of a decoder, or too many bands.
  """
  stacks = [
    leaf for name, leaf in named_leaves(tree).items() if is_stacked(name)
  ]
  depth = max((stack.shape[0] for stack in stacks), default=0)
  if not 1 <= bands <= depth:
    raise InputError(
      f"the model has {depth} layers: from 1 to {depth} bands, not {bands}"
    )
  names_G = (EMBEDDINGS, *(f"band_{b}" for b in range(bands)), HEAD)
  band_L = (1 + np.arange(depth) * bands // depth).astype(np.int32)
  unknown: list[str] = []
  sizes_G = np.zeros(len(names_G))

  def group(path: Any, leaf: Any) -> np.ndarray:
    name, index = leaf_name(path), band_L
    if not is_stacked(name):
      is_embedding = _EMBEDDINGS.fullmatch(name)
      index = np.asarray(0 if is_embedding else bands + 1, np.int32)
      if not (is_embedding or _HEAD.fullmatch(name)):
        unknown.append(f"parameter {name!r} belongs to no group")
    np.add.at(sizes_G, index, math.prod(leaf.shape) / index.size)
    return index

  of_leaf = jax.tree_util.tree_map_with_path(group, tree)
  check(unknown)
  return Groups(names_G, of_leaf, tuple((sizes_G / sizes_G.sum()).tolist()))


def one_group(tree: Any) -> Groups:
  """All parameters together."""
  return Groups(("",), jax.tree.map(lambda _: np.int32(0), tree), (1.0,))


def layer_groups_problems(text: str, prefix: str) -> list[str]:
  """Says what is wrong with the text of a key `layer_groups`."""
  if not text or (text.isdecimal() and int(text) > 0):
    return []
  return [
    f"{prefix}layer_groups must be empty or a number of bands, as '4', got "
    f"{text!r}"
  ]
