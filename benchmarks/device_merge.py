"""How near is a merge on the devices to the speed of their memory?

  python benchmarks/device_merge.py                 (a GPU or TPU, 3 minutes)
  python benchmarks/device_merge.py --width=512 --depth=8 --sequences=8   (CPU)

Merges K = 2, 4, 8 trees of a decoder (by default 1.3B parameters in bfloat16)
that lie on one device, and prints the bytes that must move (K trees read, one
written) over the time, beside those of a plain copy of an array, and the time
of a merge as a share of scoring it on a search split. K is left out where the
trees do not fit. Medians of ten, after one that compiles. On a CPU, where the
copy waits for fresh pages, its share says nothing.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.data.heldout import HeldOut
from jaxmerge.evaluation.evaluators.heldout_loss import HeldOutLoss
from jaxmerge.merging.average import weighted_average
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder, init_params
from jaxmerge.parallel.mesh import make_mesh

COUNTS = (2, 4, 8)
REPEATS = 10


def seconds(call, *arguments) -> float:
  """Median of a call that returns arrays, after one that compiles."""
  jax.block_until_ready(call(*arguments))
  taken = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(call(*arguments))
    taken.append(time.perf_counter() - start)
  return float(np.median(taken))


def copy_speed(size: int) -> float:
  """Bytes read and written a second by a copy of as many bytes."""
  # Of words, and changed by a bit: an unchanged argument is not copied at all.
  array = jnp.zeros(size // 4, jnp.uint32)
  copy = jax.jit(lambda x: x ^ 1)
  return 2 * array.nbytes / seconds(copy, array)


@functools.partial(jax.jit, static_argnums=0)
def make_tree(config: DecoderConfig, seed: int):
  params = init_params(config, jax.random.key(seed))
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


def scorer(config: DecoderConfig, sequences: int, length: int) -> HeldOutLoss:
  random = np.random.default_rng(0)
  split = HeldOut(
    tokens_NxL1=random.integers(
      0, config.vocab_size, (sequences, length + 1)
    ).astype(np.int32),
    mask_NxL=np.ones((sequences, length), np.bool_),
    document_N=np.arange(sequences, dtype=np.int32),
    bytes_N=np.full(sequences, 4 * length, np.int32),
    document_ids=tuple(map(str, range(sequences))),
  )
  graph, _ = abstract_decoder(config)
  return HeldOutLoss(graph, make_mesh(), split, min(sequences, 8))


def fits(count: int, size: int) -> bool:
  """Whether so many trees, the merge and the one before have room."""
  stats = jax.local_devices()[0].memory_stats() or {}
  limit = stats.get("bytes_limit")
  return limit is None or (count + 2) * size < 0.9 * limit


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--width", type=int, default=2048)
  parser.add_argument("--depth", type=int, default=24)
  parser.add_argument("--sequences", type=int, default=64)
  parser.add_argument("--length", type=int, default=1024)
  arguments = parser.parse_args()
  config = DecoderConfig(
    vocab_size=32_000,
    hidden_size=arguments.width,
    num_hidden_layers=arguments.depth,
    num_attention_heads=arguments.width // 64,
    num_key_value_heads=arguments.width // 64,
    intermediate_size=arguments.width * 8 // 3 // 128 * 128,
    dtype="bfloat16",
  )
  trees = [make_tree(config, 0)]
  entries = sum(leaf.size for leaf in jax.tree.leaves(trees[0]))
  size = 2 * entries
  plain = copy_speed(size)
  score = scorer(config, arguments.sequences, arguments.length)
  scoring = seconds(score.score, trees[0])
  device = jax.local_devices()[0]
  print(
    f"{device.device_kind}: {entries:,} parameters in bfloat16; a copy moves "
    f"{plain / 1e9:.0f} GB/s; scoring {arguments.sequences} sequences of "
    f"{arguments.length} takes {scoring:.3f} s\n\n"
    "| K | ms | GB/s | of a copy | of scoring |\n|---|---|---|---|---|"
  )
  for count in COUNTS:
    if not fits(count, size):
      print(f"| {count} | does not fit | | | |")
      continue
    trees += [make_tree(config, seed) for seed in range(len(trees), count)]
    weights = np.random.default_rng(0).dirichlet(np.ones(count)).tolist()
    taken = seconds(weighted_average, trees, weights)
    speed = (count + 1) * size / taken
    print(
      f"| {count} | {1e3 * taken:.2f} | {speed / 1e9:.0f} | "
      f"{speed / plain:.0%} | {taken / scoring:.2%} |",
      flush=True,
    )


if __name__ == "__main__":
  main()
