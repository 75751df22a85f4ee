"""Which checkpoints of a run stay, and whether the disk has room for them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmerge import pretrain
from jaxmerge.checkpoints.inputs import saved_steps
from jaxmerge.config_reading import examine, read
from jaxmerge.errors import InputError
from jaxmerge.training import assembly, keep
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.keep import KeepConfig, Policy, Span, Window
from jaxmerge.training.optimizer import SCHEDULES, build
from jaxmerge.training.stopping import Stopping
from tests.helpers import Telling, config_of, no_corpus, quiet

GIB = 2**30


@st.composite
def runs(draw):
  """A run, rules for it, and a loss of each of its checkpoints."""
  save_every = draw(st.integers(1, 3))
  start = draw(st.integers(0, 7))
  span = Span(start, start + draw(st.integers(1, 40)), save_every, {})
  windows = draw(
    st.lists(
      st.builds(
        lambda newest, times, first, length: Window(
          newest, times * save_every, first, first + length
        ),
        st.integers(1, 4),
        st.integers(1, 4),
        st.integers(1, 30),
        st.integers(0, 40),
      ),
      max_size=3,
    )
  )
  small = st.integers(0, 4)
  rules = Policy(draw(small), draw(small), tuple(windows))
  steps = list(span.steps)
  losses = draw(
    st.lists(
      st.sampled_from([1.0, 2.0, 3.0]),
      min_size=len(steps),
      max_size=len(steps),
    )
  )
  return span, rules, dict(zip(steps, losses, strict=True))


@settings(deadline=None, max_examples=300)
@given(runs())
def test_what_stays_is_the_union_of_the_rules_and_never_more_than_said(run):
  """Whether they are deleted save by save, or all of them were still there."""
  span, rules, losses = run
  assert len(losses) == span.saves
  there, most = [], 0
  for step in losses:
    there.append(step)
    most = max(most, len(there))
    there = sorted(rules.kept(there, losses))
    assert step in there
    seen = [s for s in losses if s <= step]
    assert {*there} == rules.kept(seen, losses)
    if rules.keeps_all:
      assert there == seen
      continue
    best = sorted(seen, key=lambda s: (losses[s], s))[: rules.best]
    union = {step, *best, *(seen[-rules.latest :] if rules.latest else [])}
    for newest, every, first, last in rules.windows:
      inside = [s for s in seen if first <= s <= last and s % every == 0]
      union |= {*inside[-newest:]}
    assert {*there} == union
  assert most <= rules.most(span) <= span.saves


@settings(deadline=None, max_examples=100)
@given(runs())
def test_of_a_long_run_the_most_is_a_bound(run):
  span, rules, _ = run
  exact = rules.most(span)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(keep, "_MANY", 0)
    assert exact <= rules.most(span) <= span.saves


def test_the_most_is_what_the_rules_do_not_share():
  """A window of every checkpoint and the newest ones are the same ones."""
  span = Span(0, 1000, 10, {})
  window = Window(16, 10, 1, 1000)
  assert Policy(latest=3, windows=(window,)).most(span) == 16 + 1
  ended = window._replace(last=500)
  assert Policy(latest=3, windows=(ended,)).most(span) == 16 + 3 + 1
  assert Policy(best=2).most(span) == 1 + 2 + 1
  assert Policy().most(span) == 100


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_phases_are_where_the_rate_says_they_are(name):
  config = config_of("pretrain", num_steps=20)
  config.optimizer.update(schedule=name, warmup_steps=4)
  if name == "wsd":
    config.optimizer.decay_steps = 6
  found = read(PretrainConfig, config)
  phases = found.optimizer.phases(20)
  steps = [s for a, b in phases.values() for s in range(a, b + 1)]
  assert steps == [*range(1, 21)]
  _, schedule = build(found.optimizer, 20)
  highest = found.optimizer.learning_rate
  rates = {
    phase: np.array([float(schedule(step - 1)) for step in range(a, b + 1)])
    for phase, (a, b) in phases.items()
  }
  assert (rates["warmup"] < 0.999 * highest).all()
  if "stable" in rates:
    np.testing.assert_allclose(rates["stable"], highest, rtol=1e-6)
  if "decay" in rates:
    assert (np.diff(rates["decay"]) < 0).all()
  assert list(phases) == {
    "wsd": ["warmup", "stable", "decay"],
    "warmup_constant": ["warmup", "stable"],
  }.get(name, ["warmup", "decay"])


def test_windows_of_a_schedule_and_of_steps():
  span = Span(300, 1000, 50, {"warmup": (1, 100), "stable": (101, 800)})
  texts = ("2 every 100 of stable", "1 every 50", "3 every 100 of 350-900")
  found = keep.policy(KeepConfig(latest=1, windows=texts), span)
  assert found.windows == (
    Window(2, 100, 301, 800),
    Window(1, 50, 301, 1000),
    Window(3, 100, 350, 900),
  )
  own = keep.policy(KeepConfig(latest=1), span, needed=4)
  assert own.windows == (Window(4, 50, 301, 1000),)
  assert keep.policy(KeepConfig(), span, needed=4).keeps_all


def test_all_windows_that_cannot_be_are_told_at_once():
  config = config_of("pretrain")  # 16 steps, saved every 4, of them 2 warm-up
  config.keep.windows = (
    "many every 4",
    "2 every 4 of decay",
    "3 every 6",
    "4 every 4 of 5-16",
    "1 every 4 of warmup",
    "0 every 4",
    "4 every 4 of stable",
  )
  config.averages.lawa = 1
  told = [f"config.keep.windows {text!r}" for text in config.keep.windows]
  form = 'is none such as "16 every 500 of stable", "16 every 500 of '
  _, problems = examine(PretrainConfig, config)
  assert problems == [
    f'{told[0]} {form}2000-9000" or "16 every 500"',
    f"{told[1]}: the schedule has no phase 'decay'; it has warmup, stable",
    f"{told[2]}: 6 is not a multiple of config.save_every 4",
    f"{told[2]} can never be full: the run has steps 1-16, of which 2 are "
    "multiples of 6",
    f"{told[3]} can never be full: of these steps the run has 5-16, of which 3 "
    "are multiples of 4",
    f"{told[4]} can never be full: warmup is steps 1-2, of which 0 are "
    "multiples of 4",
    f'{told[5]} {form}2000-9000" or "16 every 500"',
    "config.averages.lawa must be 2 or more, or 0, got 1",
  ]


@pytest.mark.parametrize(
  ("rules", "there", "free", "fits"),
  [
    (Policy(), [], 10, None),
    (Policy(), [], 9.5, "=8 alone"),
    (Policy(), [1, 2, 3], 7, None),
    (Policy(), [1, 2, 3], 6, "=8 alone"),
    (Policy(latest=3), [], 4, None),
    (Policy(latest=3), [], 3, "=2 alone"),
    (Policy(latest=3), [*range(1, 9)], 1, None),
    (Policy(latest=3), [*range(1, 9)], 0, None),  # five go at the start
    (Policy(latest=3), [1, 2, 3], 0.75, "=2 alone"),
    (Policy(latest=3), [10], 0, None),  # it is done
    (Policy(), [], 1, "none of its rules"),
    (Policy(), [], math.inf, None),
  ],
)
def test_the_disk_must_hold_them(
  tmp_path, monkeypatch, rules, there, free, fits
):
  """Ten checkpoints of 1 GiB, of which some may be there."""
  monkeypatch.setattr(keep, "free_bytes", lambda path: free * GIB)
  span = Span(0, 10, 1, {})
  problems = keep.room_problems(tmp_path, rules, span, there, GIB)
  assert len(problems) == (fits is not None)
  for problem in problems:
    assert fits in problem
    assert "are free" in problem


def test_a_run_that_does_not_fit_the_disk_is_refused(tmp_path, monkeypatch):
  """With what else is wrong, before a text is read; averages count."""
  monkeypatch.setattr(pretrain, "open_corpus", no_corpus)
  monkeypatch.setattr(keep, "free_bytes", lambda path: 800_000)
  config = config_of("pretrain")
  with pytest.raises(InputError) as error:
    pretrain.train(
      config, tmp_path / "run", init_from="nowhere", progress=quiet
    )
  assert len(error.value.problems) == 2
  room = error.value.problems[1]
  assert "needs room for 4 checkpoints" in room
  assert "config.keep.latest=1 alone would fit" in room
  assert not (tmp_path / "run").exists()
  config.keep.latest = 1
  with pytest.raises(AssertionError, match="before the cheap checks"):
    pretrain.train(config, tmp_path / "run", progress=quiet)
  config.averages.update(ema_decay=0.9, lawa=2)
  with pytest.raises(InputError, match="2 checkpoints of 603"):
    pretrain.train(config, tmp_path / "run", progress=quiet)


def test_what_is_deleted_in_a_run_that_is_stopped(tmp_path, monkeypatch):
  """The best of all checkpoints is known from metrics.jsonl alone."""
  monkeypatch.setattr(
    assembly,
    "_measured",
    lambda step, *_: {"validation_loss": 1.0 + abs(step - 4)},
  )
  workdir, moment = tmp_path / "run", 11

  def interrupt(stage, done, total, text):
    if stage == "pretrain" and total and done == moment:
      raise KeyboardInterrupt

  def train(progress):
    config = config_of("pretrain", num_steps=15, save_every=2, log_every=1)
    config.keep.update(best=1, windows=("2 every 4 of 5-12",))
    pretrain.train(config, workdir, progress=progress)

  with pytest.raises(KeyboardInterrupt):
    train(Telling(interrupt))
  assert saved_steps(workdir) == [4, 8, 10]
  left = (
    workdir / "checkpoints/.6.deleted/params"
  )  # by a kill, between two saves
  left.mkdir(parents=True)
  train(quiet)
  assert saved_steps(workdir) == [4, 8, 12, 15]
  assert not left.parent.exists()


def test_a_shorter_plan_deletes_nothing_of_a_longer_run(tmp_path):
  """A window's last step is then not the plan's."""
  workdir = tmp_path / "run"
  for num_steps in (16, 8):
    config = config_of("pretrain", num_steps=num_steps)
    config.keep = {"windows": ("2 every 4",)}
    pretrain.train(config, workdir, progress=quiet)
    assert saved_steps(workdir) == [12, 16]


def test_steps_that_stops_have_saved_do_not_pile_up(tmp_path, monkeypatch):
  """And where the plan now ends at one, it stays, and is told of."""
  workdir, notes = tmp_path / "run", []
  progress = Telling(lambda name, done, of, text: notes.append(text))

  def train(stop_at, **changes):
    monkeypatch.setattr(
      Stopping, "__call__", lambda self, step, **_: step in stop_at
    )
    config = config_of("pretrain", save_every=12, **changes)
    pretrain.train(config, workdir, progress=progress)

  for stop in (3, 5, 7, 9):
    train((stop,))
  assert saved_steps(workdir) == [7, 9]
  train((), num_steps=9)
  assert saved_steps(workdir) == [7, 9]
  assert any(note.startswith("step 9 was saved where") for note in notes)
