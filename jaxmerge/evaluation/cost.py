"""Estimates the time of a trial by a short measurement of the device."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.evaluation.evaluator import JVP_PASSES, VJP_PASSES
from jaxmerge.merging.resident import IN_STORAGE

# Bytes a second of trees that are read for every merge (docs/results/merge.md).
_STORAGE_BYTES_A_SECOND = 400e6
# Of a matrix product's speed, what a whole forward pass reaches.
_EFFICIENCY = 0.5
_SIZE = 1024


def trial_seconds(
  *,
  parameters: int,
  tree_bytes: float,
  count: int,
  tokens: int,
  use_gradients: bool,
  where: str,
) -> float:
  """Seconds to merge once and to score the merge, within a factor of two.

  A forward pass takes two operations a parameter and token.

  Args:
    parameters, tree_bytes: of a tree.
    count: trees of a merge.
    tokens: of the split.
    use_gradients: a trial costs its passes for derivatives as well.
    where: trees are kept, as choose_placement says.
  """
  flops, bytes_a_second = _speeds()
  if where == IN_STORAGE:
    bytes_a_second = _STORAGE_BYTES_A_SECOND
  passes = 1
  if use_gradients:
    passes = JVP_PASSES if count == 2 else VJP_PASSES
  scoring = passes * 2 * parameters * tokens / (_EFFICIENCY * flops)
  return scoring + count * tree_bytes / bytes_a_second


def _speeds() -> tuple[float, float]:
  """Operations and bytes a second of all devices of this process."""
  devices = len(jax.local_devices())
  if jax.default_backend() == "cpu":
    devices = 1  # they share the host's cores
  matrix = jnp.asarray(np.ones((_SIZE, _SIZE), np.float32))
  product = _fastest(jax.jit(jnp.dot), matrix, matrix)
  add = _fastest(jax.jit(jnp.add), matrix, matrix)
  return devices * 2 * _SIZE**3 / product, devices * 3 * matrix.nbytes / add


def _fastest(function: jax.stages.Wrapped, *arrays: jax.Array) -> float:
  """Seconds of the fastest of a few calls, after one that compiles."""
  taken = []
  for _ in range(6):
    begin = time.perf_counter()
    jax.block_until_ready(function(*arrays))
    taken.append(time.perf_counter() - begin)
  return min(taken[1:])
