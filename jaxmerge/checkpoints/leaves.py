"""Parameters in storage, read a few rows at a time.

A row is an index of the first axis: of a stack of layers a layer, of an
embedding a token. A parameter without axes has one row.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxmerge.parallel.rules import named_leaves


class Leaf(Protocol):
  """A parameter that may be larger than memory.

  Attributes:
    shape: of the whole.
    dtype: of the whole.
    rows_together: rows that are stored as one; reads should be of multiples.
  """

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...

  @property
  def rows_together(self) -> int: ...

  def rows(self, start: int, stop: int) -> np.ndarray:
    """The rows from start to stop, of shape (stop - start, ...)."""
    ...


@dataclasses.dataclass(frozen=True)
class LeafSpec:
  """What a parameter will be.

  Attributes:
    shape: of the whole.
    dtype: of the whole.
    rows_together: rows that Orbax is to store as one.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  rows_together: int = 1

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


class Chunk(NamedTuple):
  """Rows of a parameter, from `start` up to `stop`.

  Attributes:
    name: of the parameter.
    array: the rows, of shape (stop - start, ...); empty until they are read.
  """

  name: str
  start: int
  stop: int
  array: np.ndarray = np.empty(0)


def num_rows(shape: tuple[int, ...]) -> int:
  return shape[0] if shape else 1


def row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  return shape[1:]


class ArrayLeaf(NamedTuple):
  """A parameter in host memory."""

  array: np.ndarray

  @property
  def shape(self) -> tuple[int, ...]:
    return self.array.shape

  @property
  def dtype(self) -> np.dtype:
    return self.array.dtype

  @property
  def rows_together(self) -> int:
    return 1

  def rows(self, start: int, stop: int) -> np.ndarray:
    shape = (num_rows(self.shape), *row_shape(self.shape))
    return self.array.reshape(shape)[start:stop]


def leaves_of(params: Any) -> dict[str, Leaf]:
  """The leaves of a tree of arrays, on the host or on devices, by name."""
  return {
    name: ArrayLeaf(np.asarray(jax.device_get(leaf)))
    for name, leaf in named_leaves(params).items()
  }


def whole(leaf: Leaf) -> np.ndarray:
  return leaf.rows(0, num_rows(leaf.shape)).reshape(leaf.shape)


def total_bytes(leaves: Mapping[str, Leaf]) -> int:
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values()
  )
