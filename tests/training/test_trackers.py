"""Trackers show a run, and never end it."""

import json
import shutil
import struct
import sys
import types

import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from jaxmerge import pretrain
from jaxmerge.errors import InputError
from jaxmerge.training import tracker
from jaxmerge.training.config_checks import check_config
from jaxmerge.training.metrics import MetricsWriter
from jaxmerge.training.tracker import TRACKERS, TrackerRecord, Trackers
from tests.helpers import Telling, config_of

RECORDS = [
  {"step": 5, "tokens": 40, "loss": 2.5, "grad_norm": 1.5},
  {"step": 6, "tokens": 48, "loss": 2.0, "validation_loss": 2.25},
]
SPEEDS = {"tokens_per_second": 8.0, "data_wait": 0.25, "host_memory": 1.5}


class Fake:
  """A service that keeps what it is given, until it fails."""

  def __init__(self):
    self.runs, self.rows, self.closed = [], [], 0
    self.broken = False

  def open(self, run):
    self.runs.append(run)
    return self

  def log(self, rows):
    if self.broken:
      raise ConnectionError("no\nnetwork")
    self.rows += rows

  def close(self):
    self.closed += 1


@pytest.fixture
def fake(monkeypatch):
  found = Fake()
  monkeypatch.setitem(
    TRACKERS._loaded(), "fake", TrackerRecord("fake", "for tests", found.open)
  )
  return found


def opened(names, workdir, step=4, tell=None):
  return Trackers(
    names,
    run_id="abc",
    config={"seed": 1, "model.hidden_size": 32},
    workdir=epath.Path(workdir),
    step=step,
    tell=tell or (lambda text: pytest.fail(text)),
  )


def test_a_tracker_is_told_of_steps_under_names_of_their_group(fake, tmp_path):
  trackers = opened(["fake"], tmp_path / "my run")
  trackers.log([*RECORDS, {"step": 7, "ema_loss": 1, "merged_loss": 2}], SPEEDS)
  [run] = fake.runs
  assert (run.id, run.name, run.step) == ("my-run-abc", "my run", 4)
  assert run.config == {"seed": 1, "model": {"hidden_size": 32}}
  assert fake.rows == [
    (5, {"train/tokens": 40, "train/loss": 2.5, "train/grad_norm": 1.5}),
    (6, {"train/tokens": 48, "train/loss": 2.0, "eval/loss": 2.25}),
    (
      7,
      {
        "eval/ema_loss": 1,
        "merged/loss": 2,
        "speed/tokens_per_second": 8.0,
        "speed/data_wait": 0.25,
        "memory/host_gib": 1.5,
      },
    ),
  ]


def test_one_that_fails_is_told_of_once_and_the_others_go_on(
  fake, tmp_path, monkeypatch
):
  told = []

  def unreachable(run):
    raise TimeoutError

  gone = TrackerRecord("gone", "never there", unreachable)
  monkeypatch.setitem(TRACKERS._loaded(), "gone", gone)
  names = ["gone", "tensorboard", "fake"]
  trackers = opened(names, tmp_path, tell=told.append)
  fake.broken = True
  trackers.log(RECORDS, SPEEDS)
  trackers.log(RECORDS, SPEEDS)
  trackers.close()
  end = "has failed, the run goes on without:"
  assert told == [
    f"tracker gone {end} TimeoutError",
    f"tracker fake {end} no network",
  ]
  assert not fake.closed
  assert [event[0] for event in events_of(tmp_path)].count(6) == 2 * 6


def events_of(workdir):
  """(step, name, value) in the event files; of what is purged "purge", None."""
  found = []
  for file in sorted((workdir / "tensorboard").iterdir()):
    content = file.read_bytes()
    while content:  # length, its checksum, the event, its checksum
      [size] = struct.unpack("<Q", content[:8])
      event = Event.FromString(content[12 : 12 + size])
      content = content[16 + size :]
      if event.HasField("session_log"):
        found.append((event.step, "purge", None))
      found += [
        (event.step, v.tag, v.simple_value) for v in event.summary.value
      ]
  return found


def test_tensorboard_shows_the_steps_once(tmp_path):
  for step, records in ((0, RECORDS), (5, RECORDS[1:])):
    trackers = opened(["tensorboard"], tmp_path, step)
    trackers.log(records, SPEEDS)
    trackers.close()
  first, again = (
    [
      (5, "train/tokens", 40.0),
      (5, "train/loss", 2.5),
      (5, "train/grad_norm", 1.5),
    ],
    [
      (6, "train/tokens", 48.0),
      (6, "train/loss", 2.0),
      (6, "eval/loss", 2.25),
      (6, "speed/tokens_per_second", 8.0),
      (6, "speed/data_wait", 0.25),
      (6, "memory/host_gib", 1.5),
    ],
  )
  found = events_of(tmp_path)
  assert found == [
    (1, "purge", None),
    *first,
    *again,
    (6, "purge", None),
    *again,
  ]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_is_asked_for_the_same_run_again(name, monkeypatch, tmp_path):
  """As of wandb 0.31 and trackio 0.43, which are not installed for tests."""
  asked, logged = [], []

  class Run:
    def define_metric(self, name, step_metric):
      assert (name, step_metric) == ("*", "step")

    def log(self, values, step=None):
      logged.append((values.pop("step", step), values))

    def finish(self):
      logged.append("finished")

  def init(**how):
    asked.append(how)
    return Run()

  for variable in ("WANDB_PROJECT", "WANDB_NAME", "TRACKIO_PROJECT"):
    monkeypatch.delenv(variable, raising=False)
  monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(init=init))
  for step in (0, 5):
    trackers = opened([name], tmp_path / "run", step)
    trackers.log(RECORDS[1:], {})
    trackers.close()
  assert asked[0] == asked[1]
  assert asked[0]["id" if name == "wandb" else "name"] == "run-abc"
  assert asked[0]["resume"] == "allow"
  assert asked[0]["project"] == "jaxmerge"
  assert asked[0]["config"] == {"seed": 1, "model": {"hidden_size": 32}}
  values = {"train/tokens": 48, "train/loss": 2.0, "eval/loss": 2.25}
  assert logged == [(6, values), "finished"] * 2


def test_unknown_ones_and_packages_that_lack_are_told_at_once(monkeypatch):
  monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError) as error:
    check_config(config_of("pretrain", trackers=("wandb", "trackio", "x")))
  [unknown, *lacking] = error.value.problems
  assert unknown.startswith("config.trackers must be different ones of (")
  assert lacking == [
    f"config.trackers: {name} needs the package {name} (jaxmerge's extra "
    f"{name!r}): pip install {name}"
    for name in ("wandb", "trackio")
  ]


def test_a_run_that_goes_on_tells_its_trackers_and_its_numbers_stay(
  fake, tiny_run, workdir
):
  shutil.rmtree(workdir / "checkpoints/16")
  notes = []

  def tell(name, done, of, text):
    notes.append(text)
    if (name, done) == ("pretrain", 14):
      fake.broken = True

  config = config_of("pretrain", trackers=("fake",))
  pretrain.train(config, workdir, progress=Telling(tell))
  [run] = fake.runs
  run_id = json.loads((workdir / "run.json").read_text())["run_id"]
  assert (run.id, run.step, run.workdir) == (f"run-{run_id}", 12, workdir)
  assert [step for step, _ in fake.rows] == [13, 14]
  assert sum("tracker fake has failed" in text for text in notes) == 1
  metrics = (workdir / "metrics.jsonl").read_bytes()
  assert metrics == (tiny_run / "metrics.jsonl").read_bytes()
  assert events_of(workdir) == events_of(tiny_run)


def test_records_reach_no_tracker_that_is_not_asked_for(tmp_path):
  writer = MetricsWriter(tmp_path, restored_step=4, start=4)
  writer.write(RECORDS, SPEEDS)
  writer.close()
  assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
