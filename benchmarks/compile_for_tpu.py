"""Do our programs fit TPUs? Asked of the TPU compiler, without a TPU.

  pip install 'jaxmerge[tpu]'
  python benchmarks/compile_for_tpu.py [--only=TEXT] [--results=DIRECTORY]

Compiles training steps of configs/pretrain/, merges and held-out scoring for
several TPUs, and prints what docs/results/tpu.md shows. Two to four minutes of
two cores a step; what is finished is kept as a file of the results directory
(default runs/compile_for_tpu) and is not compiled again.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp

import jaxmerge
from jaxmerge.evaluation.evaluators.heldout_loss import batch_losses
from jaxmerge.merging.average import weighted_average
from jaxmerge.parallel.chips import chip_of
from jaxmerge.parallel.rules import batch_sharding, batch_shards
from jaxmerge.parallel.topology import (
  Compiled,
  DoesNotFit,
  compiled,
  topology_devices,
)
from jaxmerge.training.compiled_step import compile_step
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.config_checks import check_config
from jaxmerge.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Cell:
  """One program for one TPU.

  Attributes:
    program: "step", "score", or "merge K".
    model: a file of configs/pretrain/.
    sequences: on a device at once; 0: as the config says.
    changes: of the config's keys.
  """

  program: str
  model: str
  topology: str
  sequences: int = 0
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def name(self) -> str:
    changes = [f"{k.split('.')[-1]}={v}" for k, v in self.changes.items()]
    parts = [self.program, self.model, self.topology, *changes]
    return re.sub(r"[^\w.=\-]+", "_", "-".join(parts))


_GOAL = {"batch_size": 32, "step.accumulate": 1, "mesh.fsdp": 4}
_FULL = {"step.remat": "full", "mesh.data": 1}
_TWO = {"mesh.replica": 2}
CELLS = (
  *(Cell(f"merge {k}", "llama_125m", "v5e:2x2") for k in (2, 4, 8)),
  Cell("merge 4", "llama_7b", "v5p:4x4x4"),
  Cell("step", "llama_125m", "v5e:2x2", 8, {**_GOAL, "data.vocab_size": 32768}),
  Cell("step", "llama_7b", "v5p:4x4x4"),
  Cell("step", "llama_1b", "v5e:4x4"),
  Cell("score", "llama_125m", "v5e:2x2"),
  Cell("step", "llama_125m", "v5e:2x2", 8, {**_GOAL, "data.vocab_size": 2**17}),
  Cell("step", "llama_125m", "v5e:2x2*2", 8, _TWO),
  Cell("step", "llama_7b", "v5p:2x2x1", 2, {"mesh.data": 1}),
  Cell("step", "llama_7b", "v5p:4x4x4", 4, {"mesh.data": 1}),
  Cell("step", "llama_7b", "v5e:4x4", 1, _FULL),
  Cell("step", "llama_7b", "v6e:2x4", 1, _FULL),
  Cell("step", "llama_1b", "v5e:2x2", 2),
  Cell("step", "llama_1b", "v6e:2x4"),
  Cell("score", "llama_7b", "v5p:4x4x4"),
  Cell("step", "llama_125m", "v5e:2x2"),
  Cell("step", "llama_1b", "v5p:2x2x1"),
  Cell("step", "llama_125m", "v6e:2x4"),
  Cell("step", "llama_125m", "v5p:2x2x1"),
  Cell("step", "llama_125m", "v5e:4x4"),
  Cell("step", "llama_7b", "v5e:2x2", 1, _FULL),
)


def run_of(cell: Cell) -> tuple[PretrainConfig, Trainer]:
  """The config of a cell, and its trainer on devices that are not there."""
  config = jaxmerge.load_config(f"configs/pretrain/{cell.model}.py")
  config.update_from_flattened_dict(dict(cell.changes))
  devices = topology_devices(cell.topology)
  if cell.sequences:
    local = cell.sequences * len(devices)
    config.step.accumulate = max(1, config.batch_size // local)
  return check_config(config, devices)


def compile_cell(
  cell: Cell, config: PretrainConfig, trainer: Trainer
) -> Compiled:
  params = trainer.abstract_state().params
  kind, _, count = cell.program.partition(" ")
  if kind == "step":
    return compile_step(trainer, config.batch_size, config.seq_len)
  if kind == "merge":
    trees = (params,) * int(count)
    merge = jax.jit(lambda *trees: weighted_average(trees, [1.0] * len(trees)))
    return compiled(merge.lower(*trees))
  batch, sharding = config.eval_batch_size, batch_sharding(trainer.mesh)
  shapes = (
    ((batch, config.seq_len + 1), jnp.int32),
    (
      (batch, config.seq_len),
      jnp.bool_,
    ),
  )
  data = [jax.ShapeDtypeStruct(*s, sharding=sharding) for s in shapes]
  return compiled(
    batch_losses.lower(trainer.graph, trainer.mesh, False, params, *data)
  )


def measured(cell: Cell) -> dict[str, Any]:
  """A row of the table."""
  config, trainer = run_of(cell)
  chip = chip_of(trainer.mesh.devices.flat[0].device_kind)
  at_once = config.batch_size // config.step.accumulate
  row: dict[str, Any] = {
    "program": cell.program,
    "model": cell.model,
    "vocabulary": config.data.vocab_size,
    "topology": cell.topology,
    "seq_len": config.seq_len,
    "sequences": at_once // batch_shards(trainer.mesh),
    "remat": config.step.remat,
    "attention": trainer.execution.attention,
    "loss_chunk": trainer.execution.loss_chunk,
    "mesh": dict(trainer.mesh.shape),
    "hbm_gib": chip.hbm_gib if chip else None,
  }
  try:
    found = compile_cell(cell, config, trainer)
  except DoesNotFit as error:
    return {**row, "gib": error.gib, "fits": False, "said": str(error)[:300]}
  shapes = Counter(found.collectives())
  return {
    **row,
    "gib": found.gib,
    "temporaries_gib": found.temporaries / 2**30,
    "fits": chip is None or found.gib <= chip.hbm_gib,
    "seconds": found.seconds,
    "kernels": found.kernels(),
    "collectives": found.collectives_text(),
    "shapes": [[kind, shape, n] for (kind, shape), n in shapes.items()],
    "largest": largest(found.text),
  }


def largest(text: str) -> list[str]:
  """The largest types of a program, in its order of sizes."""
  sizes = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "s8": 1, "u8": 1}
  found = set(re.findall(r"\b(\w+)\[([\d,]+)\]", text))

  def size(array: tuple[str, str]) -> int:
    total = sizes.get(array[0], 0)
    for axis in array[1].split(","):
      total *= int(axis)
    return total

  return [f"{kind}[{axes}]" for kind, axes in sorted(found, key=size)[-12:]]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Markdown."""
  columns: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "program": lambda r: r["program"],
    "model": lambda r: f"{r['model']}, V {r['vocabulary']:,}",
    "TPU": lambda r: r["topology"],
    "a device at once": lambda r: (
      f"{r['sequences']} x {r['seq_len']}, {r['remat']}"
      if r["program"] == "step"
      else ""
    ),
    "GiB of HBM": lambda r: (
      f"{r['gib'] or 0:.2f} of {r['hbm_gib']:g}"
      + ("" if r["fits"] else ": does not fit")
    ),
    "temporaries": lambda r: f"{r.get('temporaries_gib', 0):.2f}",
    "collectives": lambda r: r.get("collectives", ""),
    "compiled in": lambda r: (
      f"{r['seconds']:.0f} s" if r.get("seconds") else ""
    ),
  }
  lines = [columns, ["---"] * len(columns)]
  lines += [[tell(row) for tell in columns.values()] for row in rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", default="", help="cells whose name has this")
  parser.add_argument("--results", default="runs/compile_for_tpu")
  arguments = parser.parse_args()
  results = pathlib.Path(arguments.results)
  results.mkdir(parents=True, exist_ok=True)
  rows = []
  for cell in CELLS:
    path = results / f"{cell.name}.json"
    if not path.exists():
      if arguments.only not in cell.name:
        continue
      print(f"compiling {cell.name}", flush=True)
      path.write_text(json.dumps(measured(cell), indent=1))
    rows.append(json.loads(path.read_text()))
  print(table(rows))


if __name__ == "__main__":
  main()
