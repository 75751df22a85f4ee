"""The two ceilings of a device: its memory and its matrix units.

  python benchmarks/ceilings.py [--size=8192]               (10 seconds)

Bytes read and written a second by a copy of 2 GiB, and the operations a second
of a bfloat16 product of two random square matrices: medians of seven rounds.
Prints one line of JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

ROUNDS = 7


def seconds(call: Callable[..., jax.Array], *arguments: jax.Array) -> float:
  """Median of a call in a round of ten, after one that compiles."""
  jax.block_until_ready(call(*arguments))
  taken = []
  for _ in range(ROUNDS):
    start = time.perf_counter()
    for _ in range(10):
      result = call(*arguments)
    jax.block_until_ready(result)
    taken.append((time.perf_counter() - start) / 10)
  return statistics.median(taken)


def ceilings(size: int) -> dict[str, float]:
  """In bytes and operations a second; `size` of the square matrices."""
  # Words that change by a bit: an unchanged argument is not copied at all.
  words = jnp.arange(8 * size * size, dtype=jnp.uint32)
  copy = seconds(jax.jit(lambda x: x ^ 1), words)
  left, right = (
    jax.random.normal(jax.random.key(seed), (size, size), jnp.bfloat16)
    for seed in (0, 1)
  )
  product = seconds(jax.jit(jnp.matmul), left, right)
  return {
    "copy": 2 * words.nbytes / copy,
    "matmul": 2 * size**3 / product,
  }


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--size", type=int, default=8192)
  found = ceilings(parser.parse_args().size)
  print(json.dumps({"device": jax.devices()[0].device_kind, **found}))


if __name__ == "__main__":
  main()
