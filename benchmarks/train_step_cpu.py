"""The part of train_step.py for CPUs: seconds of one core, and of two.

  python benchmarks/train_step.py --device=cpu --torch=eager \\
      --torch_python=peer/bin/python                (5 minutes on 2 cores)

where `python -m venv peer && peer/bin/pip install torch` has made the peer.

The sides take turns on one core, the first that this process may use, with one
thread each: seconds are those of the processor, which other work on the
machine changes least. Then they do so on all cores, for the wall time. Peak
memory is the highest resident set of each process, its compiler's included.
Ours is measured with the allocator as the verbs set it (`jaxmerge.allocator`)
and as it comes.
"""

import argparse
import contextlib
import os
from collections.abc import Iterator

from turns import Shape, Side, table, take_turns

# Steps until malloc's heap no longer grows.
_WARM_UP = 8
_SIZES = (128, 4, 4, 2, 384, 1024, True)
ROWS = {
  f"cpu-{length}": Shape(
    "d128", *_SIZES, seq_len=length, batch=16, dtype="float32"
  )
  for length in (256, 128)
}
_OURS = "jaxmerge"


def measure(
  shape: Shape, arguments: argparse.Namespace, cores: list[int]
) -> dict[str, Side]:
  """The sides after their turns on some cores, by name."""
  ours = {"warm_up": _WARM_UP}
  options = {
    _OURS: ("our_step.py", ours | {"keep_memory": True}),
    f"{_OURS}, malloc as it comes": ("our_step.py", ours),
  }
  if arguments.torch != "none":
    compiled = "whole" if arguments.torch == "compile" else ""
    peer = {"device": "cpu", "compile": compiled}
    name = f"torch {arguments.torch}"
    options[name] = ("torch_decoder.py", peer | {"warm_up": _WARM_UP})
  with contextlib.ExitStack() as stack:
    sides = {
      name: stack.enter_context(
        Side(
          script,
          shape,
          of_side,
          python=arguments.torch_python if "torch" in script else None,
          environment={"JAX_PLATFORMS": "cpu"},
          cores=cores,
        )
      )
      for name, (script, of_side) in options.items()
    }
    take_turns(list(sides.values()), arguments.turns, arguments.steps)
    return sides


def run(arguments: argparse.Namespace) -> Iterator[str]:
  """Lines of a table for each number of cores."""
  cores = sorted(os.sched_getaffinity(0))
  for some, what in ((cores[:1], "cpu"), (cores, "wall")):
    rows = []
    for shape in ROWS.values():
      sides = measure(shape, arguments, some)
      peer = next((s for n, s in sides.items() if "torch" in n), None)
      for name, side in sides.items():
        seconds = side.median(what)
        ratio = f"{peer.median(what) / seconds:.2f}" if peer else ""
        rows.append(
          {
            "model and batch": str(shape),
            "cores": str(len(some)),
            "side": f"{name} {side.end['version']}",
            f"{what} ms/step": f"{1e3 * seconds:.0f}",
            "spread": f"{side.spread(what):.0%}",
            "speed / torch's": ratio,
            "tokens/s": f"{shape.tokens / side.median('wall'):,.0f}",
            "peak MiB": f"{side.end['resident'] / 2**20:.0f}",
          }
        )
    yield from table(rows)
    yield ""
