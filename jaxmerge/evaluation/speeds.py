"""Estimates of the time that scoring takes, within a factor of two."""

import timeit
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Bytes a second of trees that are read (docs/results/merge.md).
STORAGE_BYTES_A_SECOND = 400e6
# Of a matrix product's speed, what a whole forward pass reaches.
_EFFICIENCY = 0.5
_SIZE = 1024


class Speeds(NamedTuple):
  """Holds what all devices of this process do in a second.

  Attributes:
    flops: operations of a matrix product.
    memory: bytes.
  """

  flops: float
  memory: float

  def forward_seconds(self, parameters: int, tokens: float) -> float:
    """A forward pass takes two operations a parameter and token."""
    return 2 * parameters * tokens / (_EFFICIENCY * self.flops)


def speeds() -> Speeds:
  """Measures them, in a moment."""
  devices = len(jax.local_devices())
  if jax.default_backend() == "cpu":
    devices = 1  # they share the host's cores
  matrix = jnp.asarray(np.ones((_SIZE, _SIZE), np.float32))
  product = _fastest(jax.jit(jnp.dot), matrix, matrix)
  add = _fastest(jax.jit(jnp.add), matrix, matrix)
  return Speeds(
    devices * 2 * _SIZE**3 / product, devices * 3 * matrix.nbytes / add
  )


def rounded(seconds: float) -> str:
  """Seconds for people, without their unit."""
  return f"{seconds:.2f}" if seconds < 10 else f"{seconds:,.0f}"


def _fastest(function: jax.stages.Wrapped, *arrays: jax.Array) -> float:
  """Seconds of the fastest of a few calls, after one that compiles."""
  call = lambda: jax.block_until_ready(function(*arrays))
  return min(timeit.repeat(call, number=1, repeat=6)[1:])
