"""A run that is killed or stopped, again and again, ends as if undisturbed."""

import json
import os
import pathlib
import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess

import pytest

from jaxmerge.checkpoints.store import restore_params
from jaxmerge.formats.records.metadata import read_metadata
from tests import forked
from tests.helpers import config_file, free_port

STEPS, SAVE_EVERY = 100, 5
PATIENCE = 240  # seconds
STOPPED = re.compile(
  r"jaxmerge.pretrain: stopped at step (\d+), which is saved; the same command "
  "goes on"
)


@pytest.fixture(scope="module")
def argv(tmp_path_factory):
  """The flags of a run on a little text, but for its workdir."""
  text = tmp_path_factory.mktemp("corpus") / "text.jsonl"
  draw = random.Random(0)
  documents = [
    " ".join(f"word{draw.randrange(99)}" for _ in range(99)) for _ in range(99)
  ]
  text.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
  return [
    f"--config={config_file('pretrain')}",
    "--config.data.source=text_files",
    f"--config.data.globs={text}",
    f"--config.save_every={SAVE_EVERY}",
    "--config.log_every=1",
  ]


class Run:
  """A run whose command is given again and again."""

  def __init__(
    self,
    workdir: pathlib.Path,
    argv: Sequence[str],
    steps: int = STEPS,
    processes: int = 1,
  ):
    self.workdir = workdir
    self._argv = [*argv, f"--workdir={workdir}", f"--config.num_steps={steps}"]
    self._job = processes

  def start(self) -> list[BaseProcess]:
    port = free_port()
    for index in range(self._job):
      self.output(index).unlink(missing_ok=True)
    return [
      forked.start(
        "pretrain",
        self._argv,
        self.output(index),
        {
          "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
          "JAX_NUM_PROCESSES": f"{self._job}",
          "JAX_PROCESS_ID": f"{index}",
        }
        if self._job > 1
        else {},
      )
      for index in range(self._job)
    ]

  def output(self, index: int = 0) -> pathlib.Path:
    return self.workdir.with_name(f"{self.workdir.name}-{index}.log")

  def lines(self) -> int:
    path = self.workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0

  def has_begun(self) -> bool:
    output = self.output()
    return output.exists() and "tokens/s" in output.read_text()

  def until(
    self, moment: Callable[[], bool], number: int, later: float = 0
  ) -> list[int | None]:
    """Sends the last process a signal at a moment; the exit codes of all."""
    processes = self.start()
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and processes[-1].is_alive():
      if moment():
        time.sleep(later)
        os.kill(processes[-1].pid, number)
        break
      time.sleep(0.002)
    return self._ended(processes)

  def _ended(self, processes: list[BaseProcess]) -> list[int | None]:
    for process in processes:
      process.join(PATIENCE)
      process.kill()
    return [process.exitcode for process in processes]

  def finish(self) -> None:
    codes = self._ended(self.start())
    assert codes == [0] * self._job, self.output().read_text()


def moments(run: Run, draw: random.Random) -> Callable[[], bool]:
  """A moment in a save, while the program starts, or after a few steps."""
  kind = draw.random()
  if kind < 0.2:
    end = time.monotonic() + draw.uniform(0, 2)
    return lambda: time.monotonic() > end
  if kind < 0.5:
    saved = run.workdir / "checkpoints"
    there = {*saved.glob("*tmp*")}  # of a save that was killed
    return lambda: any(path not in there for path in saved.glob("*tmp*"))
  more, before = draw.randrange(1, 2 * SAVE_EVERY), run.lines()
  # Lines of steps that are not saved are cut first.
  lines = before - before % SAVE_EVERY + more
  return lambda: run.lines() >= lines


def assert_same(run: Run, undisturbed: Run) -> None:
  runs = [r.workdir for r in (undisturbed, run)]
  first, again = (sorted(os.listdir(r / "checkpoints")) for r in runs)
  assert again == first
  for name in ("metrics.jsonl", "run.json"):
    assert (runs[1] / name).read_bytes() == (runs[0] / name).read_bytes()
  for step in first:
    paths = [r / "checkpoints" / step for r in runs]
    assert read_metadata(paths[0]) == read_metadata(paths[1])
    restore_params(paths[1])  # as its digests say


@pytest.fixture(scope="module")
def undisturbed(argv, tmp_path_factory):
  run = Run(tmp_path_factory.mktemp("undisturbed") / "run", argv)
  run.finish()
  return run


def test_killed_at_20_moments(argv, undisturbed, tmp_path):
  run, draw = Run(tmp_path / "run", argv), random.Random(1)
  kills = 0
  for _ in range(20):
    [code] = run.until(moments(run, draw), signal.SIGKILL, draw.uniform(0, 0.1))
    assert code in (0, -signal.SIGKILL), run.output().read_text()
    kills += code != 0
  assert kills >= 15
  run.finish()
  assert_same(run, undisturbed)


def told(run: Run, index: int = 0) -> int:
  """The step that a stopped run says it has saved; 0 before its first one."""
  lines = run.output(index).read_text().splitlines()
  [line] = [line for line in lines if line.startswith("jaxmerge.pretrain: ")]
  if stopped := STOPPED.fullmatch(line):
    return int(stopped[1])
  assert line.startswith("jaxmerge.pretrain: interrupted; "), line
  return 0


def test_stopped_at_moments(argv, undisturbed, tmp_path):
  run, draw, seen = Run(tmp_path / "run", argv), random.Random(2), []
  for number, code in [(signal.SIGTERM, 4), (signal.SIGINT, 130)] * 3:
    moment = moments(run, draw) if seen else lambda: run.lines() >= 3
    codes = run.until(moment, number, draw.uniform(0, 0.1))
    if codes == [-number]:  # before there was a handler
      assert not run.output().read_text()
      continue
    assert codes == [code], run.output().read_text()
    if step := told(run):
      seen.append(step)
      assert run.lines() == step
      path = run.workdir / "checkpoints" / str(step)
      assert read_metadata(path).temporary == (step % SAVE_EVERY != 0)
  assert sorted(set(seen)) == seen
  assert any(step % SAVE_EVERY for step in seen)
  run.finish()
  assert_same(run, undisturbed)


def test_stopped_in_a_job_of_two(argv, tmp_path):
  """Both stop at one step; and what is damaged is set aside by both."""
  run, undisturbed = (
    Run(
      tmp_path / name,
      [*argv, "--config.save_every=2"],  # JAX takes a second to hear of it
      steps=40,
      processes=2,
    )
    for name in ("run", "undisturbed")
  )
  undisturbed.finish()
  steps = []
  # Before the loop JAX takes the notice too: the first step is the last one.
  for moment in (lambda: (run.workdir / "run.json").exists(), run.has_begun):
    codes = run.until(moment, signal.SIGTERM)
    assert codes == [4, 4], run.output().read_text()
    steps.append(told(run))
    assert told(run, 1) == steps[-1] == run.lines()
  assert steps[0] == 1 < steps[1] < 40
  path = run.workdir / "checkpoints" / str(steps[-1])
  damage(path / "opt_state")
  run.finish()
  assert f"it is set aside as {run.workdir}/damaged/{steps[-1]}" in (
    run.output().read_text()
  )
  assert (run.workdir / "damaged" / str(steps[-1])).is_dir()
  assert_same(run, undisturbed)


def damage(item: pathlib.Path) -> None:
  """Cuts the largest file of an item in half."""
  files = [path for path in item.rglob("*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
