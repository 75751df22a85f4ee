"""The loop: what it tells, and that it does not wait for the devices."""

import math
import shutil
import types
from collections import Counter

import jax
import numpy as np
import pytest

from jaxmerge import pretrain
from jaxmerge.data.batch import Batch
from jaxmerge.errors import InputError
from jaxmerge.parallel import mesh
from jaxmerge.parallel.rules import place_batch
from jaxmerge.training import speed
from jaxmerge.training.config_checks import check_config
from jaxmerge.training.loop import Plan, train
from jaxmerge.training.step import StepMetrics
from tests.helpers import Telling, config_of, quiet

COMPILED = "/jax/core/compile/backend_compile_duration"


class Metrics:
  """What a MetricsWriter is told of speeds."""

  def __init__(self):
    self.speeds = []

  def write(self, records, speeds):
    self.speeds.append(speeds)


def run(step, plan, state=0, batches=None, metrics=None, progress=quiet):
  train(
    step,
    state,
    batches or iter([np.zeros(1)] * 99),
    plan,
    save=lambda step, state: None,
    evaluate=lambda step, state: {"validation_loss": 1.0},
    metrics=metrics,
    progress=progress,
  )


class OnDevice:
  """A number that notes when it is read."""

  def __init__(self, step, reads):
    self._step, self._reads = step, reads

  def __array__(self, dtype=None, copy=None):
    self._reads.append(self._step())
    return np.ones((), np.float32)


def test_metrics_are_read_where_they_are_logged():
  reads, steps = [], []

  def step(state, tokens):
    steps.append(state + 1)
    return state + 1, StepMetrics(
      *(OnDevice(lambda: steps[-1], reads) for _ in range(3))
    )

  run(step, Plan(0, 12, 1, log_every=5, save_every=6))
  assert set(reads) == {5, 6, 10, 12}


def test_steps_move_nothing_unasked():
  """Neither do logging and the update of a schedule."""
  _, trainer = check_config(config_of("pretrain"))
  state = trainer.random_start(0)
  batch = Batch(np.zeros((8, 33), np.int32))
  batches = (place_batch(trainer.mesh, batch) for _ in range(9))
  with jax.transfer_guard("disallow"):
    run(trainer.train_step(), Plan(0, 5, 256, 2, 3), state, batches)


@pytest.mark.parametrize(("last", "evaluated"), [(5, [4]), (8, [4, 8])])
def test_a_run_stops_with_that_step_saved(last, evaluated):
  def step(state, tokens):
    return state + 1, StepMetrics(*np.ones(3, np.float32))

  asked, seen, saved, records = [], [], [], []
  metrics = types.SimpleNamespace(write=lambda new, speeds: records.extend(new))
  train(
    step,
    0,
    iter([np.zeros(1)] * 99),
    Plan(0, 12, 1, log_every=3, save_every=4),
    save=lambda step, state: saved.append((step, state)),
    evaluate=lambda step, state: seen.append(step) or {"validation_loss": 1.0},
    metrics=metrics,
    progress=quiet,
    stopping=lambda step: asked.append(step) or step == last,
  )
  steps = list(range(1, last + 1))
  assert asked == [record["step"] for record in records] == steps
  assert seen == evaluated
  assert saved == [(step, step) for step in sorted({4, last})]
  assert ("validation_loss" in records[-1]) == (last == 8)


class Slow:
  """Batches that the loop waits for, by a clock that only they move."""

  def __init__(self):
    self.now = 0.0

  def __next__(self):
    self.now += 3.0
    return np.zeros(1)


@pytest.mark.parametrize("peak", [1e12, math.inf])
def test_what_is_told_of_a_step(monkeypatch, peak):
  stats = {"peak_bytes_in_use": 3 * 2**30, "bytes_limit": 80 * 2**30}
  device = types.SimpleNamespace(memory_stats=lambda: stats)
  monkeypatch.setattr(mesh.jax, "local_devices", lambda: [device])
  batches = Slow()
  clock = types.SimpleNamespace(monotonic=lambda: batches.now)
  monkeypatch.setattr(speed, "time", clock)

  def step(state, tokens):
    batches.now += 1.0
    return state + 1, StepMetrics(*np.ones(3, np.float32))

  metrics, notes = Metrics(), []
  progress = Telling(lambda name, done, of, text: notes.append(text))
  plan = Plan(0, 4, 10**6, 2, 4, peak_speed=peak)
  run(step, plan, batches=batches, metrics=metrics, progress=progress)
  assert len(metrics.speeds) == len(notes) == 2
  for speeds, note in zip(metrics.speeds, notes):
    used = "data wait 75%; 3.0/80 GiB; host "
    if math.isinf(peak):
      assert "mfu" not in speeds
      assert note.startswith(f"loss 1.0000, 250k tokens/s; {used}")
    else:
      assert speeds["mfu"] == 2.5e-7
      assert note.startswith(f"loss 1.0000, 250k tokens/s, MFU 0.0%; {used}")
    assert speeds["tokens_per_second"] == 250_000
    assert speeds["data_wait"] == 0.75
    assert speeds["device_memory"] == 3
    assert 0.01 < speeds["host_memory"] < 100


def test_a_run_compiles_nothing_twice_and_a_trace_changes_no_number(
  tiny_run, workdir
):
  for step in (12, 16):
    shutil.rmtree(workdir / f"checkpoints/{step}")
  compiles, after, notes = [], {}, []

  def listen(name, seconds, **rest):
    if name == COMPILED:
      compiles.append(name)

  def tell(name, done, of, text):
    if of:
      after[done] = len(compiles)
    else:
      notes.append(text)

  jax.monitoring.register_event_duration_secs_listener(listen)
  config = config_of("pretrain", log_every=1, profile_steps=(10, 11))
  pretrain.train(config, workdir, progress=Telling(tell))
  assert sorted(after) == list(range(9, 17))
  assert 0 < after[9] == after[10] == after[11]
  assert after[12] == after[16]  # the first checkpoint, and the second
  metrics = (workdir / "metrics.jsonl").read_text()
  assert metrics == (tiny_run / "metrics.jsonl").read_text()
  [trace] = (workdir / "profile").rglob("*.xplane.pb")
  assert b"train" in trace.read_bytes()
  told = "1 x cpu; blocked attention (the fused kernel of this device); "
  assert any(note.startswith(told) for note in notes), notes


def test_a_second_start_takes_its_programs_from_the_disk(tiny_run, tmp_path):
  told = Counter()
  jax.monitoring.register_event_listener(lambda name, **_: told.update([name]))
  config = config_of("pretrain", num_steps=1)
  pretrain.train(config, tmp_path / "run", progress=quiet)
  assert told["/jax/compilation_cache/cache_hits"] >= 2
  assert not told["/jax/compilation_cache/cache_misses"]


@pytest.mark.parametrize("steps", [(10,), (0, 3), (13, 10), (1, 2, 3)])
def test_steps_to_trace_are_a_range(steps):
  with pytest.raises(InputError, match="profile_steps must be two steps"):
    check_config(config_of("pretrain", profile_steps=steps))
