"""Two processes that train the same decoder and take turns, and their table.

Neither JAX nor PyTorch is imported here: each side has a process of its own,
which calls `serve`; the one that compares them holds a `Side` for each.
"""

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Shape:
  """A Llama-like decoder and the batch that a step takes."""

  name: str
  hidden_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  intermediate_size: int
  vocab_size: int
  tied: bool
  seq_len: int
  batch: int
  dtype: str

  @property
  def head_size(self) -> int:
    return self.hidden_size // self.num_heads

  @property
  def tokens(self) -> int:
    """Targets in a step."""
    return self.batch * self.seq_len

  @property
  def flop_parameters(self) -> int:
    """All parameters, less the input embedding where the head is another."""
    width, kv = self.hidden_size, self.num_kv_heads * self.head_size
    layer = 2 * width * (width + kv) + 3 * width * self.intermediate_size
    norms = width * (2 * self.num_layers + 1)
    return self.num_layers * layer + norms + width * self.vocab_size

  @property
  def parameters(self) -> int:
    more = 0 if self.tied else self.hidden_size * self.vocab_size
    return self.flop_parameters + more

  @property
  def flops(self) -> float:
    """Of a training step: 6 N + 6 layers heads head_size T a token.

    Those of attention are half of a full square's, as its mask is causal.
    """
    attention = self.num_layers * self.hidden_size * self.seq_len
    return 6.0 * self.tokens * (self.flop_parameters + attention)

  def __str__(self) -> str:
    tied = "tied" if self.tied else "untied"
    return (
      f"{self.name}, T {self.seq_len}, V {self.vocab_size}, {tied}, "
      f"B {self.batch}"
    )


def worker_arguments(argv: Sequence[str]) -> tuple[Shape, dict[str, Any]]:
  """The shape and the options that `Side` has put on the command line."""
  shape, options = json.loads(argv[1])
  return Shape(**shape), options


def serve(
  run: Callable[[int], float],
  describe: Callable[[], Mapping[str, Any]],
  warm_up: int,
) -> None:
  """Answers a `Side`: so many steps at each turn, until it says stop.

  Args:
    run: takes a number of steps, waits for the last, returns its loss.
    describe: what to say at the end, such as the peak of memory.
    warm_up: steps that are not timed, of which the first compiles.
  """
  start = time.perf_counter()
  first_loss = run(1)
  compiled = time.perf_counter() - start
  run(warm_up)
  _say(first_loss=first_loss, compile_seconds=compiled)
  for line in sys.stdin:
    steps = int(line)
    if not steps:
      break
    wall, cpu = time.perf_counter(), time.process_time()
    loss = run(steps)
    _say(
      wall=(time.perf_counter() - wall) / steps,
      cpu=(time.process_time() - cpu) / steps,
      loss=loss,
    )
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  _say(resident=1024 * peak, **describe())


def _say(**values: Any) -> None:
  # Libraries may print to stdout too.
  print("turn " + json.dumps(values), flush=True)


class Side:
  """One of the two processes; `with` ends it whatever happens."""

  def __init__(
    self,
    script: str,
    shape: Shape,
    options: Mapping[str, Any],
    *,
    python: str | None = None,
    environment: Mapping[str, str] | None = None,
    cores: Sequence[int] = (),
  ):
    """Starts it; the first turn waits until it has compiled.

    Args:
      script: of this directory.
      python: that runs it; None: the one that runs this.
      options: of that script.
      environment: added to the one of this process.
      cores: the only ones that it may use; none: all.
    """
    arguments = json.dumps([dataclasses.asdict(shape), dict(options)])
    self._process = subprocess.Popen(
      [python or sys.executable, str(_HERE / script), arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env={**os.environ, **(environment or {})},
      text=True,
      # A later process of Python would inherit the cores of this one.
      preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
    )
    self._turns: list[dict[str, Any]] = []
    self.start: dict[str, Any] = {}
    self.end: dict[str, Any] = {}

  def __enter__(self) -> "Side":
    return self

  def __exit__(self, *_: object) -> None:
    self._process.kill()
    self._process.wait()

  def _read(self) -> dict[str, Any]:
    assert self._process.stdout is not None
    for line in self._process.stdout:
      if line.startswith("turn "):
        return json.loads(line[len("turn ") :])
      print(line, end="", file=sys.stderr)
    code = self._process.wait()
    raise RuntimeError(f"{self._process.args[1]} has ended with {code}")

  def _send(self, steps: int) -> None:
    assert self._process.stdin is not None
    self._process.stdin.write(f"{steps}\n")
    self._process.stdin.flush()

  def wait_ready(self) -> None:
    self.start = self.start or self._read()

  def turn(self, steps: int) -> None:
    self.wait_ready()
    self._send(steps)
    self._turns.append(self._read())

  def stop(self) -> None:
    self._send(0)
    self.end = self._read()

  def median(self, what: str) -> float:
    """Of the turns: `wall` or `cpu` seconds of a step."""
    return statistics.median(turn[what] for turn in self._turns)

  def spread(self, what: str) -> float:
    """(Largest - smallest) / median."""
    values = [turn[what] for turn in self._turns]
    return (max(values) - min(values)) / self.median(what)


def take_turns(sides: Sequence[Side], turns: int, steps: int) -> None:
  """All sides compile at once; then one at a time, in the same order."""
  for side in sides:
    side.wait_ready()
  for _ in range(turns):
    for side in sides:
      side.turn(steps)
  for side in sides:
    side.stop()


def table(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
  """Lines of a Markdown table; the first row has all columns."""
  columns = list(rows[0])
  yield "| " + " | ".join(columns) + " |"
  yield "|" + "---|" * len(columns)
  for row in rows:
    yield "| " + " | ".join(row.get(column, "") for column in columns) + " |"
