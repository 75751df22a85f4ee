"""Which way of computing our training step is the fastest on this device?

  python benchmarks/step_variants.py --seconds=120       (a GPU)
  python benchmarks/step_variants.py --tiny              (any machine)

One process; a line as soon as it is measured, none is begun after so many
seconds. Temporaries are the compiler's own count. The fastest that a config
can ask for, beside the default, is written to `--best`, for train_step.py.
"""

import argparse
import dataclasses
import gzip
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from our_step import Training, details
from train_step import ROWS, TINY, peak_of, write
from turns import Shape, table

ROUNDS, STEPS = 3, 5


def variants(shape: Shape) -> Iterator[tuple[Shape, dict[str, Any]]]:
  """The most telling first; that of configs/pretrain/llama_125m.py is it."""
  dots, short = {"remat": "dots"}, {"logits": "bfloat16"}
  yield shape, dots
  yield shape, dots | short
  yield shape, {}
  yield shape, short
  yield shape, dots | {"document_mask": True}
  yield shape, dots | {"execution": {"unroll": False}}
  yield shape, dots | {"loss_chunk": shape.seq_len // 32}
  yield dataclasses.replace(shape, batch=2 * shape.batch), dots
  yield shape, dots | {"attention": "xla"}


def measure(
  shape: Shape, options: dict[str, Any], kernels_to: Path | None = None
) -> dict[str, Any]:
  """Compiles a variant and takes steps."""
  training = Training(shape, options)
  start = time.perf_counter()
  lowered = training.step.lower(training.state, training.batches[0])
  training.step = lowered.compile()
  compiled = time.perf_counter() - start
  memory = training.step.memory_analysis()
  training.run(3)
  walls = []
  for _ in range(ROUNDS):
    start = time.perf_counter()
    training.run(STEPS)
    walls.append((time.perf_counter() - start) / STEPS)
  if kernels_to is not None:
    kernels_to.write_text("\n".join(kernels(training)))
  return {
    "wall": statistics.median(walls),
    "spread": (max(walls) - min(walls)) / statistics.median(walls),
    "temporaries": getattr(memory, "temp_size_in_bytes", 0),
    "compiled": compiled,
    "details": details(training.trainer),
  }


def kernels(training: Training, steps: int = 3) -> Iterator[str]:
  """Where a step's time goes: milliseconds by the names of GPU kernels."""
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      training.run(steps)
    [file] = Path(directory).rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
  named = [event for event in events if event.get("ph") == "M"]
  streams = {
    (event["pid"], event["tid"])
    for event in named
    if event["name"] == "thread_name"
    and event["args"]["name"].startswith("Stream")
  }
  spent, calls = Counter[str](), Counter[str]()
  for event in events:
    if event.get("ph") == "X" and (event["pid"], event["tid"]) in streams:
      operation = event.get("args", {}).get("hlo_op", "")
      name = f"{event['name'][:60]} | {operation}"
      spent[name] += event["dur"] / 1e3 / steps
      calls[name] += 1
  yield f"{sum(spent.values()):.1f} ms a step in kernels"
  yield from ("", "| kernel | operation | ms | calls |", "|---|---|---|---|")
  for name, ms in spent.most_common(150):
    yield f"| {name} | {ms:.3f} | {calls[name] / steps:g} |"


def run(arguments: argparse.Namespace) -> Iterator[str]:
  row = TINY["tiny"] if arguments.tiny else ROWS[arguments.row]
  kind = jax.devices()[0].device_kind
  peak = peak_of(kind) or float("inf")
  yield f"{kind}; XLA_FLAGS: {os.environ.get('XLA_FLAGS', '')}"
  yield ""
  end, best, first = time.monotonic() + arguments.seconds, float("inf"), True
  chosen = list(variants(row.shape))
  if arguments.options:
    chosen = [(row.shape, json.loads(Path(arguments.options).read_text()))]
  for number in arguments.only or range(len(chosen)):
    if time.monotonic() > end:
      break
    shape, options = chosen[number]
    try:
      to = Path(arguments.kernels) if arguments.kernels and first else None
      found = measure(shape, options, to)
    except jax.errors.JaxRuntimeError as error:
      yield f"| {shape} | {options} | {str(error).splitlines()[0][:100]} |"
      continue
    speed = shape.tokens / found["wall"]
    line = {
      "model and batch": str(shape),
      "how": found["details"],
      "ms/step": f"{1e3 * found['wall']:.1f}",
      "spread": f"{found['spread']:.1%}",
      "tokens/s": f"{speed:,.0f}",
      "MFU": f"{shape.flops / found['wall'] / peak:.1%}",
      "temporaries GiB": f"{found['temporaries'] / 2**30:.1f}",
      "compile s": f"{found['compiled']:.0f}",
    }
    yield from list(table([line]))[0 if first else 2 :]
    first = False
    if _of_a_config(options) and shape == row.shape and found["wall"] < best:
      best = found["wall"]
      Path(arguments.best).write_text(json.dumps(options))


def _of_a_config(options: dict[str, Any]) -> bool:
  """Says whether a run's config can ask for it, with the same result."""
  return not {"execution", "document_mask"} & set(options)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--row", default=next(iter(ROWS)))
  parser.add_argument("--seconds", type=float, default=300.0)
  parser.add_argument("--only", type=int, nargs="*", help="their numbers")
  parser.add_argument("--kernels", default="", help="a file: of the first")
  parser.add_argument("--best", default="/dev/null")
  parser.add_argument("--options", default="", help="a JSON file: these alone")
  parser.add_argument("--out", default="", help="a file for the table")
  parser.add_argument("--tiny", action="store_true")
  arguments = parser.parse_args()
  write(run(arguments), arguments.out)


if __name__ == "__main__":
  main()
