"""Several searchers on one study, alive and killed: the exact budget."""

import json
import pathlib
import subprocess
import sys

import pytest

_SEARCHERS = pathlib.Path(__file__).parent / "searchers.py"
_STORAGES = {
  "journal": "{}/study.journal",
  "sqlite": "sqlite:///{}/study.db",
  "objects": "file://{}/study",
}


def _run(mode, **arguments):
  done = subprocess.run(
    [sys.executable, str(_SEARCHERS), mode, json.dumps(arguments)],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def _undisturbed(tmp_path, num_trials, **options):
  options |= {"storage": str(tmp_path / "whole"), "num_trials": num_trials}
  _run("search", log=str(tmp_path / "whole.log"), **options)
  return _run("trials", **options)


@pytest.mark.parametrize("kind", sorted(_STORAGES))
def test_two_searchers_share_the_trials(tmp_path, kind):
  options = {"storage": _STORAGES[kind].format(tmp_path), "num_trials": 12}
  shared = _run(
    "share", num_searchers=2, log=str(tmp_path / "log"), seconds=0.1, **options
  )
  assert shared["codes"] == [0, 0]
  assert sorted(number for number, _ in shared["log"]) == list(range(12))
  assert {searcher for _, searcher in shared["log"]} == {0, 1}
  assert _run("trials", **options) == _undisturbed(tmp_path, 12)


@pytest.mark.parametrize("kind", ["journal", "objects"])
def test_a_survivor_finishes_what_a_killed_one_left(tmp_path, kind):
  options = {"storage": _STORAGES[kind].format(tmp_path), "num_trials": 8}
  shared = _run(
    "share",
    num_searchers=2,
    kill_at=2,
    log=str(tmp_path / "log"),
    seconds=0.2,
    **options,
  )
  assert shared["codes"] == [-9, 0]
  killed = [n for n, searcher in shared["log"] if searcher == 0][-1]
  again = sorted([*range(8), killed])
  assert sorted(n for n, _ in shared["log"]) == again
  assert [s for n, s in shared["log"] if n == killed] == [0, 1]
  assert _run("trials", **options) == _undisturbed(tmp_path, 8)


def test_two_searchers_keep_a_limit(tmp_path):
  options = {"storage": str(tmp_path / "journal"), "num_trials": 9}
  log = str(tmp_path / "log")
  _run("share", num_searchers=3, log=log, seconds=0.02, tokens=50, **options)
  states = [state for _, state, *_ in _run("trials", **options)]
  assert states == ["COMPLETE"] * 5 + ["WAITING"] * 4


def test_killed_at_200_random_moments_equals_undisturbed(tmp_path):
  options = {"num_trials": 12, "uses_history": True}
  killed = _run(
    "kill_loop",
    num_kills=200,
    longest_seconds=0.06,
    folder=str(tmp_path),
    **options,
  )
  assert killed["kills"] == 200
  undisturbed = _undisturbed(tmp_path, **options)
  assert all(study == undisturbed for study in killed["studies"])


@pytest.mark.parametrize(
  ("kind", "is_waiting"),
  [("journal", False), ("journal", True), ("objects", False), ("sqlite", True)],
)
def test_a_trial_that_many_want_goes_to_one(tmp_path, kind, is_waiting):
  taken = _run(
    "race",
    num_searchers=4,
    log=str(tmp_path / "log"),
    storage=_STORAGES[kind].format(tmp_path),
    num_trials=12,
    is_waiting=is_waiting,
  )
  assert sorted(number for mine in taken for number in mine) == list(range(12))
