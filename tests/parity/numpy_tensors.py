"""Tensors that NumPy makes from their names alone, the same everywhere."""

import zlib

import numpy as np


def tensor(name: str, shape: list[int]) -> np.ndarray:
  """float32; the scale of a norm is about 1, all else about 0."""
  random = np.random.default_rng(zlib.crc32(name.encode()))
  values = random.standard_normal(shape)
  if "norm" in name and name.endswith("weight"):
    return (1 + 0.3 * values).astype(np.float32)
  return (0.2 * values).astype(np.float32)
