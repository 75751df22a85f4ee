"""Groups of parameters that may each have weights of their own, by a text.

| text | groups |
|---|---|
| "" | all parameters together |
| "4" | the embeddings, 4 bands of layers by depth, the head |
| "attention_mlp" | the embeddings, attention and MLP of each layer, the head |
| "layer" | the embeddings, each layer, the head |
| "embed.*,layers.[0-3].*" | by patterns over names; what none matches: "rest" |

The head is the final norm and, where embeddings are not tied, the output
projection. A layer's attention and MLP hold their norms.

G groups, L layers, K trees.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmerge.errors import InputError, check
from jaxmerge.merging.group_texts import (
  BY_LAYER,
  Parameter,
  interpolation_problems,
  labels_of,
  layer_groups_problems,
  patterns_of,
)
from jaxmerge.model.places import Place, part_of
from jaxmerge.parallel.rules import is_stacked, leaf_name, named_leaves

# All parameters together, among the coarser partitions of groups.
SHARED = "shared"
# Texts of groups that unions of finer groups may make, coarsest first.
_COARSER = ("2", "4", BY_LAYER)
_ROUNDING = 1e-14
# Of a model whose parameters have other names than a decoder's, by name.
Places = Mapping[str, Place]
# Other names of a decoder's parameters, for patterns; of a stack one a layer.
Names = Mapping[str, Sequence[str]]


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
    """The weights of all parameters together; a rounding of zero is zero."""
    mean_K = np.array(self.shares_G) @ np.array(weights_GxK)
    return np.where(abs(mean_K) < _ROUNDING, 0.0, mean_K).tolist()


class ByDepth(NamedTuple):
  """Groups of one depth each, for weights that change with it.

  Attributes:
    groups: of one layer, the embeddings or the head.
    texts: names of the groups of the text that they are parts of.
    text_G: which of them.
    depth_G: from 0, the first layer and the embeddings, to 1, the last layer
      and the head.
  """

  groups: Groups
  texts: tuple[str, ...]
  text_G: tuple[int, ...]
  depth_G: tuple[float, ...]


def one_group(tree: Any) -> Groups:
  """All parameters together."""
  return Groups(("",), jax.tree.map(lambda _: np.int32(0), tree), (1.0,))


def groups_of(
  tree: Any,
  text: str,
  places: Places | None = None,
  names: Names | None = None,
) -> Groups:
  """The groups that a text says.

  Args:
    tree: parameters of a decoder, arrays or shapes, layers stacked; or of any
      model, by name.
    text: see the head of this file.
    places: where the parameters of another model than our decoder lie.
    names: by which patterns know the parameters of a decoder; None: ours.

  Raises:
    InputError: no such text, too many bands, a pattern that matches nothing,
      or parameters whose place is not known.
  """
  check(layer_groups_problems(text, ""))
  if not text:
    return one_group(tree)
  parameters = list(_parameters(tree, places, names))
  return _grouped(tree, parameters, *labels_of(parameters, text))


def by_depth(tree: Any, text: str, places: Places | None = None) -> ByDepth:
  """The groups that a text says, divided by depth.

  Args:
    tree, places: as groups_of.
    text: "" or patterns.

  Raises:
    InputError: as groups_of, or a text that divides by depth itself.
  """
  check(layer_groups_problems(text, ""))
  check(interpolation_problems(text, ""))
  parameters = list(_parameters(tree, places))
  texts, labels = ([""], [""] * len(parameters))
  if text:
    texts, labels = labels_of(parameters, text)
  where_G, positions = labels_of(parameters, BY_LAYER, by_depth=True)
  last = max(len(where_G) - 3, 1)
  depths = dict(zip(where_G, [0, *range(len(where_G) - 2), last]))
  both = list(zip(labels, positions))
  found = set(both)
  order = [(t, w) for t in texts for w in where_G if (t, w) in found]
  joined = {pair: "/".join(filter(None, pair)) for pair in order}
  return ByDepth(
    _grouped(
      tree, parameters, [*joined.values()], [joined[pair] for pair in both]
    ),
    tuple(texts),
    tuple(texts.index(text) for text, _ in order),
    tuple(depths[where] / last for _, where in order),
  )


def coarsenings(
  tree: Any,
  text: str,
  places: Places | None = None,
  names: Names | None = None,
) -> dict[str, tuple[int, ...]]:
  """Partitions of the groups of a text, coarsest first.

  From all groups together ("shared") to each alone (the text itself); between
  them the texts whose groups are unions of these.

  Args:
    tree, text, places, names: as groups_of.

  Returns:
    For each partition the index of its part, one a group.

  Raises:
    InputError: as groups_of.
  """
  fine = groups_of(tree, text, places, names)
  alone = tuple(range(len(fine.names_G)))
  found = {SHARED: (0,) * len(alone)}
  if not text:
    return found
  for coarser in () if patterns_of(text) else _COARSER:
    parts = _as_unions(tree, fine, coarser, places)
    if parts and parts not in (alone, *found.values()):
      found[coarser] = parts
  return {**found, text: alone}


def _as_unions(
  tree: Any, fine: Groups, text: str, places: Places | None
) -> tuple[int, ...]:
  """The coarser group of each group; none where one is in several."""
  try:
    coarse = groups_of(tree, text, places)
  except InputError:  # there are not so many layers
    return ()
  leaves = zip(*map(jax.tree.leaves, (fine.of_leaf, coarse.of_leaf)))
  pairs = {
    pair
    for both in leaves
    for pair in zip(*(np.ravel(index).tolist() for index in both))
  }
  is_map = [g for g, _ in sorted(pairs)] == list(range(len(fine.names_G)))
  return tuple(part for _, part in sorted(pairs)) if is_map else ()


def _parameters(
  tree: Any, places: Places | None, names: Names | None = None
) -> Iterator[Parameter]:
  for leaf, array in named_leaves(tree).items():
    size = math.prod(array.shape)
    if places is not None:
      yield Parameter(leaf, leaf, places[leaf], size)
    elif is_stacked(leaf):
      first, *others = leaf.split("/")
      count = array.shape[0]
      for layer in range(count):
        ours = ".".join([first, str(layer), *others])
        name = names[leaf][layer] if names else ours
        place = Place(part_of(leaf), layer)
        yield Parameter(leaf, name, place, size / count, stacked=True)
    else:
      name = names[leaf][0] if names else leaf.replace("/", ".")
      yield Parameter(leaf, name, Place(part_of(leaf)), size)


def _grouped(
  tree: Any,
  parameters: Sequence[Parameter],
  names_G: Sequence[str],
  labels: Sequence[str],
) -> Groups:
  """The groups of parameters that are labelled with their names."""
  place = {name: g for g, name in enumerate(names_G)}
  sizes_G = np.zeros(len(names_G))
  found: dict[str, Any] = {}
  for parameter, label in zip(parameters, labels, strict=True):
    sizes_G[place[label]] += parameter.size
    if parameter.stacked:
      found.setdefault(parameter.leaf, []).append(place[label])
    else:
      found[parameter.leaf] = place[label]
  of_leaf = jax.tree_util.tree_map_with_path(
    lambda path, _: np.array(found[leaf_name(path)], np.int32), tree
  )
  shares_G = (sizes_G / sizes_G.sum()).tolist()
  return Groups(tuple(names_G), of_leaf, tuple(shares_G))
