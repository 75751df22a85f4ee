"""Compares the trees of checkpoints: names, shapes and dtypes.

A tensor that a model does without may be missing in some of them.
"""

import math
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxmerge.errors import grouped
from jaxmerge.formats.integrity.checksums import BLOCK
from jaxmerge.formats.lazy_tensors import LazyTensor, num_rows
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.huggingface.tensor_kinds import (
  is_derived,
  is_floating,
  may_be_missing,
)

# Names of embeddings, one of two tensors that are tied.
_EMBEDDING = re.compile(r".*(embed|wte\b|\bshared\b).*")
_TIED_BIAS = re.compile(r"(.*\.)decoder\.bias")


class Tree(Protocol):
  """The part of a Checkpoint that is looked at."""

  @property
  def name(self) -> str: ...
  @property
  def metadata(self) -> Metadata: ...
  @property
  def leaves(self) -> Mapping[str, LazyTensor] | None: ...


def tree_differences(trees: Sequence[Tree]) -> list[str]:
  """Says how trees differ from the first, a line for each kind.

  Floating-point numbers of several widths do not differ, nor do tensors that
  are derived, or whose twin every tree has (a tied head): those are left out.
  """
  params = [_params(tree) for tree in trees]
  common = set.intersection(*(set(leaves) for leaves in params))
  counted = [
    [name for name in leaves if not _is_left_out(tree, name, common)]
    for tree, leaves in zip(trees, params)
  ]
  first, *rest = trees
  problems: list[str] = []
  for other, leaves, names in zip(rest, params[1:], counted[1:]):
    problems += grouped(
      f"{other.name} has no parameter {name}"
      for name in counted[0]
      if name not in leaves
    )
    problems += grouped(
      f"{other.name} has a parameter {name} that {lacking.name} has not"
      for name in names
      if name not in common and name not in counted[0]
      for lacking in [t for t in trees if name not in _params(t)][:1]
    )
    problems += _unequal(first, other, [n for n in names if n in params[0]])
  return problems


def _params(tree: Tree) -> Mapping[str, Mapping[str, Any]]:
  return tree.metadata.leaves["params"]


def _unequal(first: Tree, other: Tree, names: Sequence[str]) -> list[str]:
  a, b = _params(first), _params(other)
  counted = [n for n in names if not is_derived(n, tuple(b[n]["shape"]))]

  def is_one_kind(name: str) -> bool:
    return is_floating(a[name]["dtype"]) == is_floating(b[name]["dtype"])

  unequal = {
    "shape": [n for n in counted if a[n]["shape"] != b[n]["shape"]],
    "dtype": [n for n in counted if not is_one_kind(n)],
  }
  return [
    problem
    for key, found in unequal.items()
    for problem in grouped(
      f"{other.name}: {key} of {name} is {b[name][key]}, of {first.name} "
      f"{a[name][key]}"
      for name in found
    )
  ]


def _is_left_out(tree: Tree, name: str, common: Container[str]) -> bool:
  """Says whether a merge does without a tensor that not every tree has."""
  if name in common:
    return False
  leaf = _params(tree)[name]
  if may_be_missing(name, tuple(leaf["shape"])):
    return True
  leaves = tree.leaves or {}
  bias = _TIED_BIAS.fullmatch(name)
  return any(
    same_values([leaves[name], twin])
    for other, twin in leaves.items()
    if other in common
    and twin.shape == leaves[name].shape
    and (
      other == f"{bias[1]}bias"
      if bias
      else len(twin.shape) == 2 and _EMBEDDING.fullmatch(other)
    )
  )


def same_values(leaves: Sequence[LazyTensor]) -> bool:
  """Says whether tensors hold the same numbers, of whatever dtype."""
  first, *rest = leaves
  if any(leaf.shape != first.shape for leaf in rest):
    return False
  count = num_rows(first.shape)
  step = max(BLOCK // max(math.prod(first.shape[1:]), 1), 1)
  for start in range(0, count, step):
    stop = min(start + step, count)
    rows, *others = (leaf.rows(start, stop) for leaf in leaves)
    if not all(_same(rows, other) for other in others):
      return False
  return True


def _same(one: np.ndarray, other: np.ndarray) -> bool:
  if one.dtype == other.dtype:
    return one.tobytes() == other.tobytes()
  return np.array_equal(one, other)
