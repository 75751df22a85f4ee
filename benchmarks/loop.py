"""How much of a step is the loop's own, and does depth cost compile time?

  taskset -c 0 python benchmarks/loop.py      (about 2 minutes)

Prints two Markdown tables. The loop is that of `pretrain`: batches of the grain
pipeline, placed, metrics logged every 10 steps to metrics.jsonl and
TensorBoard, a bar in the terminal; its step gives the state back as it is, so
that what is measured is the loop and a call of a jitted function. Compile time
is that of the real step, a scan over the layers, without a cache.
"""

import contextlib
import dataclasses
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from our_step import build_ours
from turns import Shape

from jaxmerge.cli import runner
from jaxmerge.data import pipeline
from jaxmerge.data.batch import Batch
from jaxmerge.data.cache import SplitTokens
from jaxmerge.parallel.rules import place_batch
from jaxmerge.training.loop import Plan, train
from jaxmerge.training.metrics import MetricsWriter
from jaxmerge.training.step import StepMetrics, TrainState
from jaxmerge.training.tracker import Trackers
from jaxmerge.training.trainer import Trainer

SHAPE = Shape(
  name="small",
  hidden_size=64,
  num_layers=12,
  num_heads=4,
  num_kv_heads=2,
  intermediate_size=192,
  vocab_size=1024,
  tied=True,
  seq_len=1024,
  batch=32,
  dtype="float32",
)
STEPS = 1000
ROUNDS = 5
DEPTHS = (12, 48)
STEP_MS = 50


def spent(work: Callable[[], None]) -> dict[str, float]:
  """Milliseconds of each of STEPS steps, by several clocks."""
  clocks: dict[str, Callable[[], float]] = {
    "main thread": time.thread_time,
    "all threads": time.process_time,
    "wall": time.perf_counter,
  }
  before = {name: clock() for name, clock in clocks.items()}
  work()
  return {
    name: 1000 * (clock() - before[name]) / STEPS
    for name, clock in clocks.items()
  }


def time_loop(
  trainer: Trainer, directory: Path
) -> tuple[dict[str, float], dict[str, float]]:
  """Of the loop, and of as many calls of its step alone."""
  tokens = np.random.default_rng(0).integers(
    SHAPE.vocab_size, size=STEPS * SHAPE.tokens // 8, dtype=np.uint16
  )
  split = SplitTokens("train", tokens, np.zeros(1), 0, directory)
  parts = [pipeline.Part(pipeline.Concatenated(split, SHAPE.seq_len))]
  batches = pipeline.train_batches(parts, batch_size=SHAPE.batch, seed=0)
  placed = (place_batch(trainer.mesh, batch) for batch in batches(0))

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
    loss = jnp.float32(batch.tokens_BxL1[0, 0])
    taken = state._replace(step=state.step + 1)
    return taken, StepMetrics(loss, loss, loss)

  same = jax.jit(step, donate_argnums=0)
  batch = next(placed)
  state, _ = same(trainer.random_start(0), batch)

  def bare() -> None:
    nonlocal state
    for _ in range(STEPS):
      state, _ = same(state, batch)

  def loop() -> None:
    with (
      contextlib.closing(MetricsWriter(directory, 0)) as metrics,
      open(os.devnull, "w") as nowhere,
      contextlib.redirect_stdout(nowhere),
      runner.TerminalProgress() as progress,
    ):
      metrics.track(
        Trackers(
          ["tensorboard"],
          run_id="benchmark",
          config={},
          workdir=epath.Path(directory),
          step=0,
          tell=functools.partial(progress.note, "pretrain"),
        )
      )
      train(
        same,
        state,
        placed,
        Plan(0, STEPS, SHAPE.tokens, log_every=10, save_every=STEPS),
        save=lambda step, state: None,
        evaluate=lambda step, state: {"validation_loss": 1.0},
        metrics=metrics,
        progress=progress,
      )

  alone = spent(bare)
  return spent(loop), alone


def compile_seconds(depth: int) -> tuple[float, float]:
  """CPU-seconds to trace and to compile the step of so many layers."""
  shape = dataclasses.replace(SHAPE, num_layers=depth, batch=2, seq_len=128)
  trainer = build_ours(shape, {})
  tokens = jax.ShapeDtypeStruct((shape.batch, shape.seq_len + 1), jnp.int32)
  started = time.process_time()
  lowered = trainer.train_step().lower(trainer.abstract_state(), Batch(tokens))
  traced = time.process_time()
  lowered.compile()
  return traced - started, time.process_time() - traced


def main() -> None:
  jax.config.update("jax_enable_compilation_cache", False)
  trainer = build_ours(SHAPE, {})
  with tempfile.TemporaryDirectory() as folder:
    rounds = [
      time_loop(trainer, Path(folder) / str(number)) for number in range(ROUNDS)
    ]
  print(f"| ms | loop | step alone | % of {STEP_MS} ms |\n|---|---|---|---|")
  for name in rounds[0][0]:
    loop, alone = (min(row[i][name] for row in rounds) for i in range(2))
    share = 100 * (loop - alone) / STEP_MS
    print(f"| {name} | {loop:.2f} | {alone:.2f} | {share:.1f} |")
  compile_seconds(DEPTHS[0])  # what the first compilation alone loads
  times = [[compile_seconds(depth) for depth in DEPTHS] for _ in range(ROUNDS)]
  print("\n| layers | trace (s) | compile (s) |\n|---|---|---|")
  for column, depth in enumerate(DEPTHS):
    parts = zip(*(row[column] for row in times))
    cells = " | ".join(f"{statistics.median(part):.2f}" for part in parts)
    print(f"| {depth} | {cells} |")
  ratios = [sum(deep) / sum(shallow) for shallow, deep in times]
  print(f"\n{statistics.median(ratios):.2f} times as long in all")


if __name__ == "__main__":
  main()
