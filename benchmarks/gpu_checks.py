"""Does a GPU compute what it should?

  python benchmarks/gpu_checks.py [--out=FILE]        (a GPU; a minute)
  python benchmarks/gpu_checks.py --tiny              (any machine)

Attention: each path in bfloat16 against XLA's in float32 on the same inputs,
||out - reference|| / ||reference|| of the output and of the gradients of
query, key and value; a fused path's error may be three times XLA's. The step:
loss and gradient norm of each way of computing it, against float32. Exit code 1
where a bound is passed.

B batch, L positions, H query heads, G key/value heads, S head size.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from our_step import Training, details
from train_step import write
from turns import Shape, table

from jaxmerge.model.attention import attend
from jaxmerge.model.execution import Execution

# Between 1e-3 and 1e-2 is what operands in bfloat16 give.
BOUND = 1e-2
# Of the loss (nats/token) and of the gradient's norm, as a share of it.
LOSS_BOUND, NORM_BOUND = 5e-3, 2e-2


def segments(batch: int, length: int) -> jax.Array:
  """Documents of uneven lengths, others in each sequence: int32[B, L]."""
  random = np.random.default_rng(3)
  starts = random.random((batch, length)) < 4 / length
  return jnp.asarray(np.cumsum(starts, axis=1), jnp.int32)


def attention_errors(
  kernel: str, sizes: Sequence[int], packed: bool
) -> list[float]:
  """Of the output, and of the gradients of query, key and value."""
  batch, length, heads, groups, size = sizes
  keys = jax.random.split(jax.random.key(0), 4)
  inputs = [
    jax.random.normal(key, (batch, length, n, size), jnp.bfloat16)
    for key, n in zip(keys, (heads, groups, groups, heads))
  ]
  documents = segments(batch, length) if packed else None

  def outputs(name: str, *arrays: jax.Array) -> list[jax.Array]:
    *qkv, cotangent = arrays

    def attention(*qkv: jax.Array) -> jax.Array:
      return attend(*qkv, documents, Execution(attention=name))

    out, pull = jax.vjp(attention, *qkv)
    return [out, *pull(cotangent)]

  compute = jax.jit(outputs, static_argnums=0)
  with jax.default_matmul_precision("highest"):
    right = compute("xla", *(x.astype(jnp.float32) for x in inputs))
  found = compute(kernel, *inputs)
  return [
    float(
      jnp.linalg.norm((a.astype(jnp.float32) - b).ravel())
      / jnp.linalg.norm(b.ravel())
    )
    for a, b in zip(found, right)
  ]


def check_attention(kernel: str, tiny: bool) -> Iterator[dict[str, str]]:
  length = 64 if tiny else 1024
  for heads, groups, size in ((12, 12, 64), (16, 4, 128)):
    for packed in (False, True):
      sizes = (2, length, heads, groups, size)
      plain = attention_errors("xla", sizes, packed)
      fused = attention_errors(kernel, sizes, packed)
      limit = [min(BOUND, 3 * error) for error in plain]
      yield {
        "check": f"{kernel} attention, H {heads} G {groups} S {size} L {length}"
        + (", documents" if packed else ""),
        "found": ", ".join(f"{error:.1e}" for error in fused),
        "bound": ", ".join(f"{error:.1e}" for error in limit),
        "right": str(all(e <= b for e, b in zip(fused, limit))),
      }


def loss_and_norm(shape: Shape, options: dict[str, Any]) -> tuple[str, Any]:
  """Of the first step."""
  training = Training(shape, options)
  _, metrics = training.step(training.state, training.batches[0])
  words = f"{shape.dtype}, {details(training.trainer)}"
  parts = training.trainer.step.accumulate
  words += f", accumulate {parts}" if parts > 1 else ""
  return words, np.array([float(metrics.loss), float(metrics.grad_norm)])


def check_steps(tiny: bool) -> Iterator[dict[str, str]]:
  """Of a model with 4 query heads a key/value head."""
  length, batch = (64, 4) if tiny else (1024, 8)
  width = 64 if tiny else 512
  shape = Shape(
    "d", width, 4, 8, 2, 3 * width, 8192, True, length, batch, "bfloat16"
  )
  exact = dataclasses.replace(shape, dtype="float32")
  for documents in ({}, {"document_mask": True}):
    plain = documents | {"attention": "xla"}
    with jax.default_matmul_precision("highest"):
      words, right = loss_and_norm(exact, plain)
    yield {
      "check": f"loss and gradient norm of {words}",
      "found": f"{right[0]:.5f}, {right[1]:.4f}",
      "bound": "the reference",
      "right": "",
    }
    chunks = {"remat": "dots", "loss_chunk": length // 4, "accumulate": 2}
    ways = [documents] if documents else [{}, plain, chunks]
    for options in ways:
      words, found = loss_and_norm(shape, options)
      loss, norm = np.abs(found - right) / (1, right[1])
      yield {
        "check": words,
        "found": f"{found[0]:.5f} ({loss:.1e}), {found[1]:.4f} ({norm:.1e})",
        "bound": f"{LOSS_BOUND}, {NORM_BOUND}",
        "right": str(bool(loss <= LOSS_BOUND and norm <= NORM_BOUND)),
      }


def run(arguments: argparse.Namespace, wrong: list[str]) -> Iterator[str]:
  yield jax.devices()[0].device_kind
  yield ""
  on_gpu = jax.devices()[0].platform == "gpu"
  kernel = "cudnn" if on_gpu else "blocked"
  first = True
  for rows in (
    check_attention(kernel, arguments.tiny),
    check_steps(arguments.tiny),
  ):
    for row in rows:
      if row["right"] == "False":
        wrong.append(row["check"])
      yield from list(table([row]))[0 if first else 2 :]
      first = False


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--out", default="", help="a file for the table")
  parser.add_argument("--tiny", action="store_true")
  arguments = parser.parse_args()
  wrong: list[str] = []
  write(run(arguments, wrong), arguments.out)
  sys.exit(bool(wrong))


if __name__ == "__main__":
  main()
