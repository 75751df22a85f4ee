"""How fast is a training step, against PyTorch in the same run?

  python benchmarks/train_step.py                     (a GPU; 4 minutes)
  python benchmarks/train_step.py --rows=1.3B-2048 --torch=none
  python benchmarks/train_step.py --tiny              (any machine; a minute)
  python benchmarks/train_step.py --device=cpu        (see train_step_cpu.py)

Each side, `our_step.py` and `torch_decoder.py`, is a process of its own. Both
compile at once and then take turns; where they do not fit into the GPU
together, one runs after the other ("alone"). Numbers are medians of the turns,
the spread is (largest - smallest) / median. Tokens are random; the batch and
its options are those of the row.

MFU = tokens/s x (6 N + 6 layers heads head_size T) / peak, where N are all
parameters less the input embedding if it is untied, and peak is that of the
datasheet (bfloat16, dense) or of a product of 8192 x 8192 matrices that is
measured in the same run. Peak memory is what each side's allocator reports.
"""

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from turns import Shape, Side, table, take_turns

from jaxmerge.parallel.chips import chip_of

HERE = Path(__file__).resolve().parent
# Nothing is taken from a GPU before it is needed: two processes share it.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
ALONE = SHARED | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}


def _of_a_config() -> dict[str, Any]:
  """As configs/pretrain/llama_*.py have it."""
  return {"remat": "dots"}


@dataclasses.dataclass(frozen=True)
class Row:
  """A model and a batch, and how they are computed.

  Attributes:
    alone: the sides do not fit into the GPU together.
    compiled: how PyTorch is, see torch_decoder.Decoder.compiled.
    options: of ours, as our_step.build_ours takes them.
  """

  shape: Shape
  alone: bool = False
  compiled: str = "layers"
  options: dict[str, Any] = dataclasses.field(default_factory=_of_a_config)


def _shape(name: str, length: int, batch: int, vocab: int = 50304) -> Shape:
  width, layers, heads, hidden = {
    "125M": (768, 12, 12, 2048),
    "350M": (1024, 24, 16, 2816),
    "1.3B": (2048, 24, 16, 5632),
  }[name]
  sizes = (width, layers, heads, heads, hidden, vocab)
  return Shape(name, *sizes, True, length, batch, "bfloat16")


# The most important first; 16,384 or 32,768 tokens a step.
ROWS = {
  "125M-1024": Row(_shape("125M", 1024, 32), compiled="whole"),
  "350M-2048": Row(_shape("350M", 2048, 8)),
  "1.3B-2048": Row(
    _shape("1.3B", 2048, 8), alone=True, options={"remat": "dots"}
  ),
  "125M-2048": Row(_shape("125M", 2048, 16)),
  "350M-1024": Row(_shape("350M", 1024, 16)),
  "1.3B-1024": Row(
    _shape("1.3B", 1024, 16), alone=True, options={"remat": "dots"}
  ),
  "125M-32k": Row(_shape("125M", 1024, 32, 32000)),
}
_TINY = Shape("tiny", 64, 2, 4, 2, 128, 512, True, 64, 4, "bfloat16")
TINY = {"tiny": Row(_TINY), "tiny-alone": Row(_TINY, alone=True)}


def peak_of(device_kind: str) -> float:
  """Operations a second by the datasheet; 0 where it is not known."""
  chip = chip_of(device_kind)
  return 1e12 * chip.peak_tflops if chip else 0.0


@dataclasses.dataclass(frozen=True)
class Published:
  """A figure of others: tokens/s of a GPU, or the MFU by our own formula."""

  what: str
  gpu: str
  shape: Shape
  tokens_per_second: float = 0.0
  theirs: str = ""
  source: str = ""

  def row(self) -> dict[str, str]:
    ours = self.theirs
    if self.tokens_per_second:
      speed = self.tokens_per_second * self.shape.flops / self.shape.tokens
      ours = f"{speed / peak_of(f'NVIDIA {self.gpu}'):.1%}"
    return {
      "published by": self.what,
      "on 8": self.gpu,
      "T": str(self.shape.seq_len),
      "MFU, theirs": self.theirs,
      "MFU, our formula": ours,
      "source": self.source,
    }


_FOUNDRY = "llm-foundry, scripts/train/benchmarking/README.md"


def _mpt(
  name: str, length: int, batch: int, gpu: str, **more: Any
) -> Published:
  # MPT: no gate, tied; 4 * width in the MLP is 8 / 3 with one.
  shape = dataclasses.replace(_shape(name, length, batch), tied=True)
  hidden = 8 * shape.hidden_size // 3
  shape = dataclasses.replace(shape, intermediate_size=hidden)
  return Published(
    f"llm-foundry {name}",
    gpu,
    shape,
    source=_FOUNDRY,
    **more,
  )


# Theirs counts the whole square of attention, not the half below its mask.
PUBLISHED = (
  Published(
    "llm.c 124M",
    "H100",
    _shape("125M", 1024, 64),
    theirs="about 41%",
    source="its formula is ours",
  ),
  _mpt("350M", 2048, 32, "A100", tokens_per_second=58782, theirs="51.6%"),
  _mpt("350M", 1024, 64, "A100", tokens_per_second=64813, theirs="50.5%"),
  _mpt("1.3B", 2048, 14, "H100", tokens_per_second=45455, theirs="41.8%"),
  _mpt("1.3B", 1024, 18, "H100", tokens_per_second=48910, theirs="42.0%"),
)


def ceilings(size: int) -> dict[str, Any]:
  """Of a process of its own, which takes its memory with it when it ends."""
  command = [sys.executable, HERE / "ceilings.py", f"--size={size}"]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])


def measure(
  row: Row, arguments: argparse.Namespace
) -> Iterator[tuple[str, Side]]:
  """The sides after their turns, by name."""
  sides = {"jaxmerge": ("our_step.py", row.options, sys.executable)}
  if arguments.torch != "none":
    compiled = row.compiled if arguments.torch == "compile" else ""
    options = {"device": arguments.device, "compile": compiled}
    sides["torch"] = ("torch_decoder.py", options, arguments.torch_python)
  names = list(sides)
  for group in [[name] for name in names] if row.alone else [names]:
    with contextlib.ExitStack() as stack:
      running = {}
      for name in group:
        script, options, python = sides[name]
        environment = ALONE if row.alone else SHARED
        side = Side(
          script, row.shape, options, python=python, environment=environment
        )
        running[name] = stack.enter_context(side)
      take_turns(list(running.values()), arguments.turns, arguments.steps)
      yield from running.items()


def report(
  row: Row, name: str, side: Side, peak: float, matmul: float, ours: float
) -> dict[str, str]:
  """One line of the table."""
  wall = side.median("wall")
  flops = row.shape.flops / wall
  return {
    "model and batch": str(row.shape) + (", alone" if row.alone else ""),
    "side": f"{name} {side.end['version']}",
    "ms/step": f"{1e3 * wall:.1f}",
    "spread": f"{side.spread('wall'):.1%}",
    "tokens/s": f"{row.shape.tokens / wall:,.0f}",
    "MFU": f"{flops / peak:.1%}" if peak else "",
    "of the matmul": f"{flops / matmul:.1%}",
    "time, ours 1": f"{wall / ours:.2f}",
    "peak GiB": f"{side.end['peak_bytes'] / 2**30:.1f}",
    "first step s": f"{side.start['compile_seconds']:.0f}",
    "details": side.end["details"],
  }


def run(arguments: argparse.Namespace) -> Iterator[str]:
  """Lines of the tables, each as soon as it is known."""
  found = ceilings(512 if arguments.tiny else 8192)
  kind = found["device"]
  peak = peak_of(kind)
  yield (
    f"{kind}: a copy moves {found['copy'] / 1e12:.2f} TB/s, a bfloat16 matmul "
    f"does {found['matmul'] / 1e12:.0f} TFLOP/s; datasheet: "
    f"{peak / 1e12:.0f} TFLOP/s"
  )
  yield ""
  rows = TINY if arguments.tiny else ROWS
  options = json.loads(Path(arguments.options).read_text() or "{}")
  names = arguments.rows.split(",") if arguments.rows else list(rows)[:3]
  first = True
  for name in names:
    row, ours = rows[name], 0.0
    row = dataclasses.replace(row, options={**options, **row.options})
    try:
      for side_name, side in measure(row, arguments):
        ours = ours or side.median("wall")
        lines = list(
          table([report(row, side_name, side, peak, found["matmul"], ours)])
        )
        yield from lines if first else lines[2:]
        first = False
    except RuntimeError as error:  # the others are still worth their minutes
      yield f"| {row.shape} | {error} |"
  yield ""
  yield from table([published.row() for published in PUBLISHED])


def write(lines: Iterator[str], out: str) -> None:
  """To the terminal and to a file, a line at a time."""
  with open(out or "/dev/null", "w") as file:
    for line in lines:
      print(line, flush=True)
      print(line, file=file, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
  parser.add_argument("--rows", default="", help=", ".join(ROWS))
  parser.add_argument(
    "--torch", default="compile", choices=("compile", "eager", "none")
  )
  parser.add_argument(
    "--torch_python", default=sys.executable, help="the Python that has it"
  )
  parser.add_argument(
    "--options", default="/dev/null", help="a JSON file: other options of ours"
  )
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument("--out", default="", help="a file for the tables")
  parser.add_argument("--tiny", action="store_true")
  arguments = parser.parse_args(argv)
  if arguments.device == "cpu" and not arguments.tiny:
    import train_step_cpu

    write(train_step_cpu.run(arguments), arguments.out)
    return
  write(run(arguments), arguments.out)


if __name__ == "__main__":
  main()
