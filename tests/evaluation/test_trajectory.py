"""Trajectories among inputs, and the noise of scores along them."""

import dataclasses

import numpy as np
import pytest
from etils import epath

from jaxmerge.checkpoints.inputs import Checkpoint, each_step
from jaxmerge.evaluation.ready_tasks import TaskScores
from jaxmerge.evaluation.score import Score
from jaxmerge.evaluation.task_tables import compared
from jaxmerge.evaluation.trajectory import (
  as_json,
  lowered,
  noises,
  trajectories,
)
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.reporting.evaluation_text import trajectories_text
from jaxmerge.reporting.trajectory_figure import curves


def checkpoint(step, run="r", kind="trained", item="params"):
  metadata = Metadata(kind, {}, step=step, tokens=100 * step, run_id=run)
  end = f":{item}" * (item != "params")
  return Checkpoint(
    epath.Path("x"), f"runs/{run}@{step}{end}", metadata, item=item
  )


def score(mean, unit="nats/token"):
  values_N = np.array([mean - 0.5, mean + 0.5, mean])
  ones = np.ones(3)
  return Score(values_N, ones, np.arange(3), unit, "minimize", 0)


def test_steps_of_one_run_are_a_trajectory():
  found = trajectories(
    [
      checkpoint(30),
      checkpoint(10),
      checkpoint(5, run="other"),
      checkpoint(20),
      checkpoint(20),  # again
      checkpoint(10, item="ema"),
      checkpoint(30, item="ema"),
      checkpoint(20, kind="merged"),
      checkpoint(40, run=""),
      checkpoint(50, run=""),
    ]
  )
  assert [(t.name, t.steps, t.is_plain) for t in found] == [
    ("runs/r", (10, 20, 30), True),
    ("runs/r:ema", (10, 30), False),
  ]
  assert found[0].numbers == (1, 3, 0)
  assert found[0].tokens == (1000, 2000, 3000)


def _tables(values, averages):
  checkpoints = [checkpoint(step) for step in range(1, len(values) + 1)]
  checkpoints += [
    dataclasses.replace(checkpoint(step, item="ema"))
    for step in range(1, len(averages) + 1)
  ]
  falling = [score(x) for x in [*values, *averages]]
  flat = [score(2.0, "accuracy") for _ in checkpoints]
  names = [c.name for c in checkpoints]
  found = [TaskScores("a", {"x": falling}), TaskScores("b", {"acc": flat})]
  return trajectories(checkpoints), compared(names, found)


def test_noise_is_of_the_last_and_signal_of_the_second_half():
  values = [9.0, 7.0, 6.0, 5.0, 4.5, 4.0, 3.7, 3.6, 3.3, 3.4, 3.1, 3.2]
  averages = [6.0, 5.0, 4.6, 4.3, 4.0, 3.7, 3.5, 3.3, 3.2, 3.1, 3.05, 3.0]
  found, tables = _tables(values, averages)
  clear, flat = noises(found[0], tables)
  last = np.array(values[-5:])
  assert (clear.task, clear.metric, clear.last) == ("a", "x", 5)
  assert clear.noise == pytest.approx(last.std(ddof=1) / last.mean())
  # Step 6 of 12 is the first of the second half.
  assert clear.signal == pytest.approx((4.0 - 3.2) / last.mean())
  assert clear.ratio == pytest.approx(clear.signal / clear.noise)
  assert clear.is_clear
  assert (flat.noise, flat.signal, flat.is_clear) == (0.0, 0.0, False)
  [(name, noise, ratio)] = lowered(found, tables)
  assert (name, noise.task) == ("runs/r:ema", "a")
  smooth = np.array(averages[-5:])
  expected = smooth.std(ddof=1) / smooth.mean() / clear.noise
  assert ratio == pytest.approx(expected)
  told = trajectories_text(found, tables)
  assert told.count("worth searching on") == 2
  assert f"is {ratio:.2f} of that of the run" in told
  known = as_json(found[0], tables)
  assert known["curves"]["a"]["x"]["values"] == pytest.approx(values)
  assert known["noise"][0]["is_clear"] is True
  assert curves(found, tables)[1:4] == b"PNG"


def test_noise_is_compared_at_the_steps_of_both():
  """Averages of every other step, of a run whose noise is the first ones'."""
  values = [5.0, 5.4] * 8
  averages = {step: 5.0 + 0.1 * (step % 4 == 0) for step in range(2, 17, 2)}
  checkpoints = [checkpoint(step) for step in range(1, 17)]
  checkpoints += [checkpoint(step, item="ema") for step in averages]
  scores = [score(x) for x in [*values, *averages.values()]]
  tables = compared(
    [c.name for c in checkpoints], [TaskScores("a", {"x": scores})]
  )
  # The run itself is the same at these steps.
  assert lowered(trajectories(checkpoints), tables) == []
  scores[5] = score(4.9)  # step 6 of 16 is not among the last
  scores[11] = score(5.9)  # step 12 is
  [(_, noise, ratio)] = lowered(trajectories(checkpoints), tables)
  last = np.array([5.4, 5.9, 5.4, 5.4])
  ema = np.array([averages[step] for step in (10, 12, 14, 16)])
  assert noise.last == 4
  expected = ema.std(ddof=1) / ema.mean() * last.mean() / last.std(ddof=1)
  assert ratio == pytest.approx(expected)


def test_few_checkpoints_tell_no_noise():
  for count in (2, 5, 6):
    found, tables = _tables([3.0 - 0.1 * n for n in range(count)], [])
    assert bool(noises(found[0], tables)) == (count == 6)
  # Half of six, not the whole trajectory.
  assert noises(found[0], tables)[0].last == 3


def test_a_workdir_stands_for_its_steps(tmp_path):
  run = tmp_path / "run"
  for step in (8, 16, 100):
    (run / f"checkpoints/{step}").mkdir(parents=True)
  names = [f"{run}@{step}" for step in (8, 16, 100)]
  assert each_step(str(run)) == names
  assert each_step(f"{run}:ema") == [f"{name}:ema" for name in names]
  for name in (
    f"{run}@8",
    str(run / "checkpoints/8"),
    "nowhere",
    str(tmp_path),
  ):
    assert each_step(name) == [name]
