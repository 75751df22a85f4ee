"""A run goes on from its newest whole checkpoint, and each save is checked."""

import dataclasses
import errno
import json
import os
import shutil
import threading
import time

import orbax.checkpoint as ocp
import pytest

from jaxmerge import pretrain
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.errors import Damaged, InputError
from jaxmerge.formats.records.metadata import (
  from_json,
  read_metadata,
  to_json,
)
from tests.helpers import Telling, config_of, contents, no_corpus

# Orbax leaves its unfinished reads to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


def train(workdir, **changes):
  """Trains on the tiny config; returns the notes."""
  notes = []
  progress = Telling(lambda name, done, of, text: notes.append(text))
  pretrain.train(config_of("pretrain"), workdir, progress=progress, **changes)
  return notes


def cut_metadata(step):
  os.truncate(step / "metadata/metadata", 100)


def remove_opt_state(step):
  shutil.rmtree(step / "opt_state")


def put_other_parameters(step):
  """Whole files, of other numbers: only their digests tell."""
  shutil.rmtree(step / "params")
  shutil.copytree(step.with_name("4") / "params", step / "params")


def assert_same(workdir, tiny_run):
  saved = workdir / "checkpoints"
  assert sorted(os.listdir(saved)) == ["12", "16", "4", "8"]
  metrics = (workdir / "metrics.jsonl").read_text()
  assert metrics == (tiny_run / "metrics.jsonl").read_text()
  for step in saved.iterdir():
    there = tiny_run / "checkpoints" / step.name
    assert read_metadata(step) == read_metadata(there)


def test_what_is_damaged_is_set_aside(tiny_run, workdir):
  saved, damaged = workdir / "checkpoints", workdir / "damaged"
  put_other_parameters(saved / "16")
  (saved / ".9.deleted/params").mkdir(parents=True)  # killed while deleting
  notes = train(workdir)
  assert "going on from step 12" in notes
  [line] = [note for note in notes if "set aside" in note]
  assert line.startswith(f"{saved}/16 is damaged: params ")
  assert line.endswith(f" of this kind); it is set aside as {damaged}/16")
  assert_same(workdir, tiny_run)
  cut_metadata(saved / "16")
  remove_opt_state(saved / "12")
  notes = train(workdir)
  assert "going on from step 8" in notes
  assert sorted(os.listdir(damaged)) == ["12", "16", "16-2"]
  assert_same(workdir, tiny_run)


def test_a_dry_run_tells_of_damage_alone(workdir, capsys):
  cut_metadata(workdir / "checkpoints/16")
  before = contents(workdir)
  notes = train(workdir, dry_run=True)
  assert contents(workdir) == before
  [line] = [note for note in notes if "16 is damaged" in note]
  assert line.endswith("the run sets it aside")


def test_a_run_none_of_whose_checkpoints_is_whole_does_not_begin_anew(
  workdir, monkeypatch
):
  saved = workdir / "checkpoints"
  for step in (4, 8):
    cut_metadata(saved / str(step))
  for step in (12, 16):
    remove_opt_state(saved / str(step))
  before = contents(workdir)
  monkeypatch.setattr(pretrain, "open_corpus", no_corpus)
  with pytest.raises(InputError) as error:
    train(workdir)
  assert contents(workdir) == before
  *damaged, last = error.value.problems
  for step, problem in zip((16, 12, 8, 4), damaged, strict=True):
    assert problem.startswith(f"{saved}/{step} is damaged: ")
  assert last.startswith("no checkpoint of the run is whole")


def test_what_another_reading_may_mend_is_not_taken_for_damage(
  tiny_run, monkeypatch
):
  def fails(*args, **kwargs):
    raise ValueError("UNAVAILABLE: the bucket does not answer")

  monkeypatch.setattr(ocp.StandardCheckpointer, "restore", fails)
  with pytest.raises(InputError, match="cannot be read now") as error:
    restore_params(tiny_run / "checkpoints/8")
  assert not isinstance(error.value, Damaged)


def test_metadata_of_another_version_are_not_taken_for_damage(
  tiny_run, tmp_path
):
  value = to_json(read_metadata(tiny_run / "checkpoints/8"))
  with pytest.raises(Damaged, match="does not match its own digest"):
    from_json({**value, "step": 9})
  newer = dataclasses.replace(from_json(value), temporary=1)
  with pytest.raises(InputError, match="temporary is 1, not true") as error:
    from_json(json.loads(json.dumps(to_json(newer))))
  assert not isinstance(error.value, Damaged)


def test_a_save_that_fails_is_told_at_the_next_step_that_logs(
  tmp_path, monkeypatch
):
  finalize = ocp.CompositeCheckpointHandler.finalize

  def fails(self, directory):
    if "8" in directory.name:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finalize(self, directory)

  monkeypatch.setattr(ocp.CompositeCheckpointHandler, "finalize", fails)
  done = []

  def wait(name, step, of, text):
    done.append(step)
    if of and step == 8:  # until the save has failed
      for thread in threading.enumerate():
        if thread.name == "save_finalize":
          while thread.is_alive():  # to join it would raise what it did
            time.sleep(0.01)

  with pytest.raises(InputError, match="no space left on device"):
    pretrain.train(
      config_of("pretrain"), tmp_path / "run", progress=Telling(wait)
    )
  assert max(done) == 8
  restore_params(tmp_path / "run/checkpoints/4")
