"""Tensors that a merge copies or leaves out, as they are no weights."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxmerge.checkpoints.tree_differences import same_values
from jaxmerge.errors import check
from jaxmerge.formats.integrity.norms import all_finite
from jaxmerge.formats.lazy_tensors import LazyTensor
from jaxmerge.huggingface.tensor_kinds import (
  are_places,
  is_derived,
  is_extra_state,
  is_floating,
  is_mask,
  is_part_of_weight,
)

# Ways in which a tensor comes into a merge, as they are told.
_AVERAGED = ""
_COPIED = "equal in all inputs, copied"
_LATEST = "not averaged, taken from the latest input"
_LEFT_OUT = "not in all inputs and not needed, left out"
_FLOAT8 = "float8 without scales, averaged as plain numbers"
# Ways in which it does not.
_PACKED = (
  "whole numbers of an array, which differ: packed weights or places of "
  "weights, whose mean would be another model"
)
_FLOAT64 = (
  "float64, which sums in float32 would round; --config.dtype=float32 accepts "
  "that"
)
_INFINITE = "NaN or Inf, and not the same in all inputs"
_FACTORED = (
  "part of a weight that is a product (weight_norm, spectral_norm, "
  "parametrizations), and not the same in all inputs: means of the parts give "
  "another weight; make plain weights of them first (torch.nn.utils: "
  "remove_weight_norm, parametrize.remove_parametrizations)"
)
_REFUSED = (_PACKED, _FLOAT64, _INFINITE, _FACTORED)
_MOST_SHOWN = 2


class Copied(NamedTuple):
  """Tensors that are copied from the latest input, and what is told of them.

  Attributes:
    names: of the tensors.
    notes: a line for each way in which tensors come into the merge.
  """

  names: frozenset[str] = frozenset()
  notes: Sequence[str] = ()


def told_left_out(names: Sequence[str]) -> str:
  """A note on tensors that only some inputs have."""
  return _told(names, _LEFT_OUT)


def find_copied(
  trees: Sequence[Mapping[str, LazyTensor]], dtype: str
) -> Copied:
  """Finds what is not averaged; reads such tensors alone, which are small.

  Args:
    trees: that are to be merged, of one kind each as tree_differences has it.
    dtype: asked of the output; "" for none.

  Raises:
    InputError: tensors differ that can neither be averaged nor chosen.
  """
  ways: dict[str, list[str]] = {}
  names = dict.fromkeys(name for tree in trees for name in tree)
  for name in names:
    leaves = [tree[name] for tree in trees if name in tree]
    missing = len(leaves) < len(trees)
    if missing:
      way = _LEFT_OUT
    elif is_part_of_weight(name, names):
      way = _COPIED if same_values(leaves) else _FACTORED
    else:
      way = _way(name, leaves, dtype)
    ways.setdefault(way, []).append(name)
  ways.pop(_AVERAGED, None)
  check(_told(ways[way], way) for way in _REFUSED if way in ways)
  copied = (*ways.get(_COPIED, ()), *ways.get(_LATEST, ()))
  return Copied(frozenset(copied), [_told(ways[way], way) for way in ways])


def _way(name: str, leaves: Sequence[LazyTensor], dtype: str) -> str:
  """Finds how a tensor that all trees have comes into a merge."""
  derived = is_derived(name, leaves[0].shape)
  floating = all(is_floating(leaf.dtype) for leaf in leaves)
  size = max(leaf.dtype.itemsize for leaf in leaves)
  is_weight = floating and size <= 4
  if is_weight and not derived and not is_mask(name):
    return _FLOAT8 if size == 1 else _AVERAGED
  if same_values(leaves):
    return _COPIED
  if derived or not floating:
    return _PACKED if not derived and _is_packed(name, leaves) else _LATEST
  if size > 4 and not dtype:
    return _FLOAT64
  return _AVERAGED if all(map(_is_finite, leaves)) else _INFINITE


def _is_packed(name: str, leaves: Sequence[LazyTensor]) -> bool:
  """Says whether whole numbers are those of packed weights, or their places.

  By their bits, or their name.
  """
  if is_extra_state(name):
    return False
  leaf = leaves[0]
  axes = sum(size > 1 for size in leaf.shape)
  size = leaf.dtype.itemsize
  is_array = axes > 1 or (axes == 1 and size == 1)  # a flat array of bytes
  is_packed = is_array and size <= 4 and leaf.dtype != np.bool_
  return is_packed or (axes > 0 and are_places(name))


def _is_finite(leaf: LazyTensor) -> bool:
  return all_finite(np.asarray(leaf))


def _told(names: Sequence[str], way: str) -> str:
  shown = ", ".join(names[:_MOST_SHOWN])
  more = len(names) - _MOST_SHOWN
  return f"{shown}{f' and {more} more' if more > 0 else ''}: {way}"
