"""Gram matrices of the differences of successive trees: R'R, R = [r_1, ...].

r_p = theta_{p+1} - theta_p of K trees, oldest first; P = K - 1 differences.
Products of whole trees would lose them in float32. A method "on grams" makes
weights of R'R.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.checkpoints.merged import Readings
from jaxmerge.errors import InputError, Problems
from jaxmerge.formats.integrity.checksums import ReadMark
from jaxmerge.formats.lazy_tensors import Chunk, TensorSpec
from jaxmerge.merging import chunks
from jaxmerge.merging.method import Method
from jaxmerge.merging.streaming import is_mask, not_finite
from jaxmerge.merging.weight_checks import normalise
from jaxmerge.parallel.exchange import whole

# Entries of each tree that are in float64 at a time.
_AT_ONCE = 1 << 14


def gram_of_arrays(arrays_K: Sequence[np.ndarray]) -> np.ndarray:
  """R'R of K equal arrays on the host, in float64: float64[P, P]."""
  flat = [array.reshape(-1) for array in arrays_K]
  gram_PxP = np.zeros((len(flat) - 1,) * 2)
  for first in range(0, flat[0].size, _AT_ONCE):
    part = slice(first, first + _AT_ONCE)
    wide = np.stack([array[part].astype(np.float64) for array in flat])
    with np.errstate(invalid="ignore"):  # Inf - Inf, which is told as NaN
      steps_PxE = np.diff(wide, axis=0)
      gram_PxP += steps_PxE @ steps_PxE.T
  return gram_PxP


class Differences:
  """R'R of chunks of K trees in storage.

  Attributes:
    problems: leaves with NaN or Inf; to be read when all chunks are done.
  """

  def __init__(self, trees: Sequence[chunks.Stored]):
    self._trees = trees
    self.problems: set[str] = set()

  def __call__(self, chunk: Chunk) -> np.ndarray:
    arrays = [tree.read(chunk) for tree in self._trees]
    gram_PxP = gram_of_arrays(arrays)
    if not np.isfinite(gram_PxP).all():
      if is_mask(arrays):
        return np.zeros_like(gram_PxP)
      self.problems |= not_finite(chunk, self._trees, arrays)
    return gram_PxP


def gram_of_chunks(
  work: Differences,
  specs: Mapping[str, TensorSpec],
  workers: int = chunks.WORKERS,
  begun: Callable[[str], None] = lambda name: None,
) -> np.ndarray:
  """R'R over all chunks of these leaves, added in their order."""
  made = chunks.in_order(work, chunks.chunks(specs), workers, begun)
  return np.sum([chunk.array for chunk in made], axis=0)


def gram_of_trees(trees_K: Sequence[Any]) -> np.ndarray:
  """R'R of K equal trees on the devices, a leaf after the other.

  Products are summed over a leaf's last axis in float32, the rest in float64
  on the host. In a job all processes call it.
  """
  rows = zip(*map(jax.tree.leaves, trees_K), strict=True)
  return np.sum([_square(np.asarray(_upper(row))) for row in rows], axis=0)


def _upper(leaves_K: Sequence[jax.Array]) -> np.ndarray:
  """Sums of the products of the pairs p <= q, in their order."""
  sums = whole(_products(tuple(leaves_K)))
  return np.asarray(sums).reshape(len(sums), -1).sum(1, dtype=np.float64)


@jax.jit
def _products(leaves_K: tuple[jax.Array, ...]) -> jax.Array:
  wide = [jnp.atleast_1d(leaf).astype(jnp.float32) for leaf in leaves_K]
  steps = [after - before for before, after in zip(wide, wide[1:])]
  return jnp.stack(
    [
      jnp.sum(steps[p] * steps[q], axis=-1)
      for p in range(len(steps))
      for q in range(p, len(steps))
    ]
  )


def _square(upper: np.ndarray) -> np.ndarray:
  """The symmetric matrix of the entries on and above its diagonal."""
  count = (math.isqrt(8 * len(upper) + 1) - 1) // 2
  found = np.zeros((count, count))
  found[np.triu_indices(count)] = upper
  return found + np.triu(found, 1).T


def gram_weights(
  method: Method, gram_PxP: np.ndarray, knobs: Any
) -> list[float]:
  """The weights of K inputs by a method that acts on grams.

  Raises:
    InputError: the matrix is not finite, or the weights are not usable.
  """
  if not np.isfinite(gram_PxP).all():
    raise InputError(
      f"the method {method.name!r}: the inputs hold NaN or Inf, or their "
      "differences are too large"
    )
  found = method.function(gram_PxP, knobs)
  if len(found) != len(gram_PxP) + 1:
    raise InputError(
      f"the method {method.name!r} gives {len(found)} weights for "
      f"{len(gram_PxP) + 1} inputs"
    )
  return list(normalise(found))


def streamed_weights(
  method: Method,
  knobs: Any,
  readings: Readings,
  specs: Mapping[str, TensorSpec],
  wide: Mapping[str, np.dtype],
  workers: int,
  begun: Callable[[str], None],
) -> list[float]:
  """The weights of inputs that lie in storage, each of which is read once.

  Args:
    method, knobs: that act on grams.
    readings: of the merge that follows; inputs without digests are marked as
      read, be their weight zero.
    specs: of the leaves that are averaged.
    wide: dtypes in which they are read.
    workers: chunks at the same time.
    begun: told each leaf's name.

  Raises:
    InputError: an input is damaged or not finite, or as gram_weights.
  """
  own = Readings.of(readings.sources)
  work = Differences(chunks.stored(own, [1.0] * len(own.sources), wide))
  gram_PxP = gram_of_chunks(work, specs, workers, begun)
  problems = Problems(sorted(work.problems))
  problems(own.hashes)
  problems.check()
  for mark in readings.checksums:
    if isinstance(mark, ReadMark):
      mark.seen = True
  return gram_weights(method, gram_PxP, knobs)
