"""A run that diverges goes back to a mean, and on behind what spoilt it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge import pretrain
from jaxmerge.checkpoints import store
from jaxmerge.checkpoints.inputs import step_path, steps_in
from jaxmerge.errors import Diverged
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.merging.average import weighted_average
from jaxmerge.training.trainer import Trainer
from tests.helpers import Telling, config_of, contents, quiet


@pytest.fixture
def spoilt(monkeypatch):
  """Positions in the data whose batches spoil the loss."""
  positions = set()
  batches_of, step_of = pretrain.pipeline.train_batches, Trainer.train_step

  def train_batches(*args, **kwargs):
    batches = batches_of(*args, **kwargs)

    def from_position(position):
      for at, batch in enumerate(batches(position), start=position):
        if at in positions:
          batch = jax.tree.map(np.zeros_like, batch)
        yield batch

    return from_position

  def train_step(trainer):
    step = step_of(trainer)

    def spoil(state, batch):
      is_bad = jnp.all(batch.tokens_BxL1 == 0)
      state, metrics = step(state, batch)
      loss = jnp.where(is_bad, jnp.nan, metrics.loss)
      return state, metrics._replace(loss=loss)

    return spoil

  monkeypatch.setattr(pretrain.pipeline, "train_batches", train_batches)
  monkeypatch.setattr(Trainer, "train_step", train_step)
  return positions


def train(workdir, roll_back, progress=quiet, **changes):
  config = config_of("pretrain", **changes)
  config.step.roll_back = roll_back
  pretrain.train(config, workdir, progress=progress)


def records(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def metadata_of(workdir):
  """All that says what a run is, but the name of its place."""
  names = ("checkpoints/metadata", "metrics.jsonl", "run.json")
  found = {
    name: inside
    for name, inside in contents(workdir).items()
    if name in names or name.endswith("metadata/metadata")
  }
  assert len(found) == 2 + len(steps_in(workdir))
  return found


class Killed(Telling):
  """Ends a run two steps after it has gone back so often."""

  def __init__(self, times):
    self._left = times

  def note(self, name, text):
    self._left -= "roll back" in text

  def stage(self, name, done, of, note=""):
    if name == "pretrain" and not self._left:
      raise KeyboardInterrupt


def test_a_run_goes_back_to_the_mean_and_behind_the_batches(
  tiny_run, tmp_path, spoilt
):
  spoilt |= {13, 16}
  said = []
  workdir = tmp_path / "run"
  train(workdir, 2, Telling(lambda *args: said.append(args[3])))
  # Until it diverges it is the run that never does.
  assert records(workdir)[:12] == records(tiny_run)[:12]
  assert [text for text in said if "roll back" in text] == [
    "the run has diverged: step 14 has loss nan; roll back 1 of 2, to the mean "
    "of steps 4, 8, 12, behind the batches so far",
    # Steps 13 to 15 read the batches at 14 to 16.
    "the run has diverged: step 15 has loss nan; roll back 2 of 2, to the mean "
    "of steps 4, 8, 12, behind the batches so far",
  ]
  assert "metrics of 2 steps that were not saved are cut" in said
  assert [record["step"] for record in records(workdir)] == [*range(1, 17)]
  last = read_metadata(step_path(workdir, 16))
  assert (last.position, last.roll_backs) == (21, 2)
  assert read_metadata(step_path(workdir, 12)).roll_backs == 0
  # Killed after them, it goes back as often and comes to the same.
  whole = metadata_of(workdir)
  again = tmp_path / "killed"
  with pytest.raises(KeyboardInterrupt):
    train(again, 2, Killed(2))
  assert steps_in(again) == [4, 8, 12]
  train(again, 2)
  assert metadata_of(again) == whole


def test_the_parameters_are_a_mean_and_the_rest_the_newest(
  tiny_run, tmp_path, spoilt, monkeypatch
):
  from jaxmerge.training import standing

  spoilt.add(9)
  found = []
  rolled_back = standing.rolled_back

  def look(*args):
    at = rolled_back(*args)
    found.append(jax.device_get(at))
    return at

  monkeypatch.setattr(standing, "rolled_back", look)
  train(tmp_path / "run", 1, num_steps=12)
  [at] = found
  trees = [store.restore_params(step_path(tiny_run, s)) for s in (4, 8)]
  wanted = weighted_average(trees, [1, 1])
  jax.tree.map(np.testing.assert_array_equal, at.state.params, wanted)
  assert (at.step, at.position, int(at.state.step)) == (8, 10, 8)
  counts = [
    int(leaf)
    for leaf in jax.tree.leaves(at.state.opt_state)
    if leaf.dtype == np.int32
  ]
  assert counts == [8, 8]


def test_a_run_goes_back_no_more_than_it_may(tmp_path, spoilt):
  spoilt |= {2, 5, 8}
  with pytest.raises(Diverged, match="step 3 has loss nan") as error:
    train(tmp_path / "early", 9)
  assert error.value.__notes__ == [
    "no checkpoint has been saved: the run begins anew"
  ]
  workdir = tmp_path / "run"
  spoilt.remove(2)
  with pytest.raises(Diverged, match="step 7 has loss nan") as error:
    train(workdir, 1)
  assert error.value.__notes__ == [f"its last good checkpoint is {workdir}@4"]
  assert [record["step"] for record in records(workdir)] == [*range(1, 7)]
  # It may go back more often later.
  train(workdir, 2, num_steps=8)
  assert read_metadata(step_path(workdir, 8)).roll_backs == 2


def test_a_damaged_checkpoint_is_left_out_of_the_mean(tmp_path, spoilt):
  workdir, notes = tmp_path / "run", []
  train(workdir, 0, num_steps=12)
  for step in (8, 12):
    file = max(
      (workdir / f"checkpoints/{step}/params").rglob("*"),
      key=lambda path: path.stat().st_size,
    )
    held = file.read_bytes()
    file.write_bytes(b"0" * len(held) if step == 8 else held)
  spoilt.add(13)
  progress = Telling(lambda name, done, of, text: notes.append(text))
  train(workdir, 1, progress)
  assert any("to the mean of steps 4, 12, behind" in note for note in notes)
  assert steps_in(workdir) == [4, 8, 12, 16]
