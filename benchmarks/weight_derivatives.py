"""What do derivatives by the weights of a merge cost in forward passes?

  python benchmarks/weight_derivatives.py            (a minute on one core)
  python benchmarks/weight_derivatives.py --large    (a GPU)

Of K random checkpoints in G groups: the gradients of all sequences in one
reverse pass, and a direction of the curvature, over a forward pass of as many
sequences. Medians of calls in turns; on a CPU of CPU seconds.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from train_step import write
from turns import table

from jaxmerge.data.heldout import HeldOut
from jaxmerge.evaluation.evaluators.heldout_loss import HeldOutLoss
from jaxmerge.evaluation.weight_derivatives import WeightDerivatives
from jaxmerge.merging.groups import groups_of
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder, init_params
from jaxmerge.parallel.mesh import make_mesh

SMALL = (128, 4, 4, 384, 1024, 128, 64, "float32")
LARGE = (768, 12, 12, 2048, 49152, 1024, 64, "bfloat16")
TINY = (32, 2, 2, 64, 128, 32, 4, "float32")
CASES = ((3, 0), (6, 0), (6, 4))


def seconds(calls: list[Callable[[], Any]], turns: int) -> np.ndarray:
  """Of each call, the median of so many after one that compiles."""
  on_cpu = jax.default_backend() == "cpu"
  clock = time.process_time if on_cpu else time.perf_counter
  for call in calls:
    call()
  taken = np.zeros((turns, len(calls)))
  for turn in range(turns):
    for i, call in enumerate(calls):
      start = clock()
      call()
      taken[turn, i] = clock() - start
  return np.median(taken, axis=0)


def rows(sizes: tuple[Any, ...], turns: int) -> Iterator[dict[str, str]]:
  width, depth, heads, hidden, vocabulary, length, count, dtype = sizes
  config = DecoderConfig(
    vocab_size=vocabulary,
    hidden_size=width,
    num_hidden_layers=depth,
    num_attention_heads=heads,
    num_key_value_heads=heads,
    intermediate_size=hidden,
    dtype=dtype,
  )
  graph, shapes = abstract_decoder(config)
  random = np.random.default_rng(0)
  tokens = random.integers(0, vocabulary, (count, length + 1)).astype(np.int32)
  split = HeldOut(
    tokens,
    np.ones((count, length), bool),
    np.arange(count),
    np.full(count, length),
    tuple(map(str, range(count))),
  )
  mesh = make_mesh()
  make = jax.jit(lambda key: init_params(config, key))
  for number, bands in CASES:
    trees = [make(jax.random.key(k)) for k in range(number)]
    groups = groups_of(shapes, str(bands or ""))
    plain = HeldOutLoss(graph, mesh, split, 16)
    work = WeightDerivatives(graph, mesh, split, trees, groups)
    some = list(range(4))
    score, reverse, curvature = seconds(
      [
        partial(plain.score, trees[0]),
        partial(work.gradients, trees[0]),
        partial(work.curvature, trees[0], some),
      ],
      turns,
    )
    directions = len(groups.names_G) * (number - 1)
    tangent = curvature / len(some) / directions * count / score
    yield {
      "K": str(number),
      "groups": str(len(groups.names_G)),
      "forward pass (s)": f"{score:.3f}",
      "reverse pass (passes)": f"{reverse / score:.1f}",
      "a direction (passes)": f"{tangent:.2f}",
    }


def run(arguments: argparse.Namespace) -> Iterator[str]:
  yield jax.devices()[0].device_kind
  yield ""
  sizes = LARGE if arguments.large else TINY if arguments.tiny else SMALL
  yield from table(list(rows(sizes, arguments.turns)))


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--large", action="store_true", help="125M, bfloat16")
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument("--turns", type=int, default=3)
  parser.add_argument("--out", default="", help="a file for the table")
  arguments = parser.parse_args()
  write(run(arguments), arguments.out)


if __name__ == "__main__":
  main()
