"""Parameters in storage, read a few rows at a time.

A row is an index of the first axis: of a stack of layers a layer, of an
embedding a token. A parameter without axes has one row.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmerge.config_fields import nested
from jaxmerge.parallel.exchange import whole
from jaxmerge.parallel.rules import named_leaves

_MOST_AXES = 32
_MOST_ENTRIES = 2**59


@dataclasses.dataclass(frozen=True, eq=False)
class TensorSpec:
  """Shape, dtype and storage of a parameter that is or will be.

  Attributes:
    shape: of the whole.
    dtype: of the whole.
    rows_together: rows that are stored as one; reads should be of multiples.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  rows_together: int = 1

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class LazyTensor(TensorSpec):
  """A parameter that may be larger than memory; `np.asarray` reads it."""

  def rows(self, start: int, stop: int) -> np.ndarray:
    """The rows from start to stop, of shape (stop - start, ...)."""
    raise NotImplementedError

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    del copy  # reading always makes a new array
    array = self.rows(0, num_rows(self.shape)).reshape(self.shape)
    return array if dtype is None else array.astype(dtype)


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


def widest(dtypes: Iterable[np.dtype]) -> np.dtype:
  """The narrowest floating-point type that holds numbers of each of these.

  Of integers it is the one of most bytes.
  """
  found = set(dtypes)
  size = max(dtype.itemsize for dtype in found)
  largest = [dtype for dtype in found if dtype.itemsize == size]
  if len(largest) == 1:
    return largest[0]
  return np.dtype(np.float16 if size == 1 else np.float32)


def are_counts(value: Any) -> bool:
  """Says whether a value of a file is a list of sizes or places."""
  return isinstance(value, list | tuple) and all(
    type(n) is int and n >= 0 for n in value
  )


def is_shape(value: Any) -> bool:
  """Says whether NumPy can make an array of such a shape, be it empty."""
  return (
    are_counts(value)
    and len(value) <= _MOST_AXES
    and math.prod(max(n, 1) for n in value) <= _MOST_ENTRIES
  )


def num_rows(shape: tuple[int, ...]) -> int:
  return shape[0] if shape else 1


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _ArrayTensor(LazyTensor):
  array: np.ndarray

  def rows(self, start: int, stop: int) -> np.ndarray:
    rows = self.array.reshape(num_rows(self.shape), *self.shape[1:])
    return rows[start:stop]


def array_leaf(array: np.ndarray) -> LazyTensor:
  """An array of the host as what might lie in storage."""
  return _ArrayTensor(array.shape, array.dtype, array=array)


def leaves_of(params: Any) -> dict[str, LazyTensor]:
  """The leaves of a tree of arrays, on the host or on devices, by name.

  In a job all processes call it.
  """
  return {
    name: array_leaf(whole(leaf)) for name, leaf in named_leaves(params).items()
  }


def tree_of_leaves(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `named_leaves` for nested dicts."""
  return nested(leaves, "/")


def placed(array: np.ndarray, sharding: Any = None) -> jax.Array:
  """An array of the host on the devices, of which others may have some."""
  if sharding is None or sharding.is_fully_addressable:
    return jax.device_put(array, sharding)
  return jax.make_array_from_callback(
    array.shape, sharding, array.__getitem__, dtype=array.dtype
  )


def place_leaves(
  leaves: Mapping[str, LazyTensor], shardings: Any = None
) -> Any:
  """A tree on the devices, read one parameter after the other."""
  where = {} if shardings is None else named_leaves(shardings)
  return tree_of_leaves(
    {
      name: placed(np.asarray(leaf), where.get(name))
      for name, leaf in leaves.items()
    }
  )
