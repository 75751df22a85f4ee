"""The weights that a user has typed for groups of parameters.

G groups, K inputs.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmerge.checkpoints.inputs import DECODER, Checkpoint
from jaxmerge.errors import check
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.huggingface.places import layout_of
from jaxmerge.huggingface.tensor_kinds import is_derived, is_floating
from jaxmerge.merging.group_texts import weight_count_problems
from jaxmerge.merging.groups import Groups, Places, by_depth, groups_of
from jaxmerge.merging.weight_checks import normalise


class GroupedWeights(NamedTuple):
  """Groups and the weights of each, which sum to one."""

  groups: Groups
  weights_GxK: list[tuple[float, ...]]


class _Model(NamedTuple):
  """Tensors that are grouped, by name, and tied copies of them."""

  tree: Any
  places: Places | None = None
  copies: dict[str, str] = {}


def grouped_weights(
  knobs: Any, sources: Sequence[Checkpoint], weights: Sequence[float]
) -> GroupedWeights | None:
  """Gives each group its weights; None where all have the same.

  Args:
    knobs: of the merge; of most methods they say nothing of groups.
    sources: the K inputs, of equal trees.
    weights: as typed, K numbers of one group after the other; by depth those
      of the first layer, maybe of others, and of the last.

  Raises:
    InputError: the model has no such groups, or other numbers of weights.
  """
  text = getattr(knobs, "layer_groups", "")
  is_by_depth = getattr(knobs, "interpolate", False)
  if not (text or is_by_depth):
    return None
  model = _model(sources)
  count, rows = len(sources), np.reshape(weights, -1)
  if not is_by_depth:
    groups = groups_of(model.tree, text, model.places)
    _check_count(count, groups.names_G, weights, interpolate=False)
    found = rows.reshape(-1, count)
  else:
    depths = by_depth(model.tree, text, model.places)
    groups = depths.groups
    _check_count(count, depths.texts, weights, interpolate=True)
    # T groups of the text, A layers at which they are given.
    given_TxAxK = rows.reshape(len(depths.texts), -1, count)
    at_A = np.linspace(0, 1, given_TxAxK.shape[1])
    found = np.array(
      [
        [np.interp(depth, at_A, column) for column in given_TxAxK[t].T]
        for t, depth in zip(depths.text_G, depths.depth_G)
      ]
    )
  of_leaf = groups.of_leaf
  if model.copies:
    of_leaf = of_leaf | {c: of_leaf[name] for c, name in model.copies.items()}
  return GroupedWeights(
    groups._replace(of_leaf=of_leaf),
    [normalise(row) for row in found.tolist()],
  )


def tied_copies(sources: Sequence[Checkpoint]) -> Collection[str]:
  """Names of heads that are copies of an embedding, of equal trees."""
  return _model(sources).copies.keys()


def _check_count(
  count: int, names: Sequence[str], weights: Sequence[float], **by_depth: bool
) -> None:
  check(weight_count_problems(count, names, len(weights), **by_depth))


def _model(sources: Sequence[Checkpoint]) -> _Model:
  """The weights that all inputs have, by shape."""
  first = sources[0].metadata
  if sources[0].layout == DECODER:
    return _Model(abstract_params(first))
  trees = [source.metadata.leaves["params"] for source in sources]
  shapes = {
    name: tuple(leaf["shape"])
    for name, leaf in trees[0].items()
    if all(name in tree for tree in trees)
  }
  weighed = {
    name: jax.ShapeDtypeStruct(shape, trees[0][name]["dtype"])
    for name, shape in shapes.items()
    if is_floating(trees[0][name]["dtype"]) and not is_derived(name, shape)
  }
  layout = layout_of({name: shapes[name] for name in weighed}, first.model)
  tree = {n: leaf for n, leaf in weighed.items() if n not in layout.copies}
  return _Model(tree, layout.places, dict(layout.copies))
