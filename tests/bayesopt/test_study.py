"""Budget, leases, fingerprints: what is known before any kill."""

import math
import os
import subprocess
import time

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

from jaxmerge import owner
from jaxmerge.bayesopt.study import (
  LEASE_PREFIX,
  Observation,
  open_study,
  run_study,
)
from jaxmerge.errors import InputError

_SPACE = {"x": FloatDistribution(0, 1)}


class CountingSampler(BaseSampler):
  """Deterministic and cheap: x depends on the number and the best so far."""

  def infer_relative_search_space(self, study, trial):
    return dict(_SPACE)

  def sample_relative(self, study, trial, search_space):
    done = [t.value for t in study.trials if t.state == TrialState.COMPLETE]
    return {"x": (0.37 * trial.number + sum(done)) % 1.0}

  def sample_independent(self, study, trial, name, distribution):
    raise AssertionError("everything is relative")


def _objective(number, params):
  return Observation((params["x"] - 0.4) ** 2, 0.01 * number, {"n": [number]})


def _open(storage, num_trials=4, fingerprint=None, **kwargs):
  return open_study(
    storage,
    "search",
    sampler=CountingSampler(),
    fingerprint=fingerprint or {"config": "a"},
    num_trials=num_trials,
    **kwargs,
  )


def _abandon(study, number, owner_of_lease, taken_at=None):
  """Leaves a trial running under somebody's lease, as a dead worker does."""
  trial = study.get_trials()[number]
  study._storage.set_trial_system_attr(
    trial._trial_id,
    LEASE_PREFIX + "somebody",
    {"owner": list(owner_of_lease), "taken_at": taken_at or time.time()},
  )
  study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)


@pytest.mark.parametrize("scheme", ["{}/deep/journal.log", "sqlite:///{}/s.db"])
def test_every_slot_is_evaluated_once(tmp_path, scheme):
  study = _open(scheme.format(tmp_path))
  seen = []
  run_study(study, _objective, num_trials=4, on_trial=seen.append)
  assert [t.number for t in seen] == [0, 1, 2, 3]
  for trial in study.trials:
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs == {
      "n": [trial.number],
      "stderr": 0.01 * trial.number,
    }
  again = _open(scheme.format(tmp_path))
  run_study(again, _objective, num_trials=4, on_trial=seen.append)
  assert len(seen) == 4
  assert [t.params for t in again.trials] == [t.params for t in study.trials]


def test_a_larger_budget_adds_and_a_smaller_one_leaves_alone(tmp_path):
  path = tmp_path / "journal"
  run_study(_open(path, 3), _objective, num_trials=3)
  study = _open(path, 6)
  assert len(study.trials) == 6
  run_study(study, _objective, num_trials=4)
  states = [t.state for t in study.trials]
  assert states == [TrialState.COMPLETE] * 4 + [TrialState.WAITING] * 2
  assert len(_open(path, 2).trials) == 6


def test_a_non_finite_score_fails_its_trial_only(tmp_path):
  bad = {1: math.nan, 2: math.inf}

  def objective(number, params):
    if number == 3:
      return Observation(1.0, math.nan, {})
    return Observation(bad.get(number, params["x"]), 0.0, {"kept": True})

  study = _open(tmp_path / "journal", 5)
  run_study(study, objective, num_trials=5)
  states = [t.state.name for t in study.trials]
  assert states == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
  assert "not finite (nan)" in study.trials[1].user_attrs["failure"]
  assert "not finite (inf)" in study.trials[2].user_attrs["failure"]
  assert "standard error" in study.trials[3].user_attrs["failure"]
  assert study.trials[1].user_attrs["kept"]


def test_an_exception_leaves_the_trial_to_the_next_run(tmp_path):
  def objective(number, params):
    if number == 2:
      raise ZeroDivisionError
    return _objective(number, params)

  study = _open(tmp_path / "journal")
  with pytest.raises(ZeroDivisionError):
    run_study(study, objective, num_trials=4)
  assert study.trials[2].state == TrialState.RUNNING
  params = study.trials[2].params
  run_study(study, _objective, num_trials=4)
  assert study.trials[2].params == params
  assert all(t.state == TrialState.COMPLETE for t in study.trials)


def test_another_fingerprint_or_direction_is_refused(tmp_path):
  path = tmp_path / "journal"
  _open(path, fingerprint={"config": "a", "inputs": [1, 2], "same": 1})
  _open(path, fingerprint={"config": "a", "inputs": (1, 2), "same": 1})
  with pytest.raises(InputError) as caught:
    _open(path, fingerprint={"config": "b", "extra": 0, "same": 1})
  assert len(caught.value.problems) == 3
  for key, problem in zip(
    ["config", "extra", "inputs"], caught.value.problems, strict=True
  ):
    assert f"another {key} " in problem
  with pytest.raises(InputError, match="made to minimize"):
    _open(
      path,
      fingerprint={"config": "a", "inputs": [1, 2], "same": 1},
      direction="maximize",
    )


def test_a_foreign_study_is_refused(tmp_path):
  url = f"sqlite:///{tmp_path}/s.db"
  foreign = optuna.create_study(storage=url, study_name="search")
  foreign.enqueue_trial({})
  with pytest.raises(InputError, match="not made by this program"):
    _open(url)


@pytest.mark.parametrize(
  "storage", ["gs://bucket/journal", "s3://bucket/journal", "nosuch://host/db"]
)
def test_unusable_storages_are_refused(storage):
  with pytest.raises(InputError):
    _open(storage)


def test_num_trials_must_be_positive(tmp_path):
  with pytest.raises(InputError, match="num_trials"):
    _open(tmp_path / "journal", 0)


def test_a_dead_workers_trial_comes_first_with_its_point(tmp_path):
  study = _open(tmp_path / "journal")
  me = owner.this_process()
  _abandon(study, 2, me._replace(start="0"))
  study._storage.set_trial_param(
    study.trials[2]._trial_id, "x", 0.125, _SPACE["x"]
  )
  order = []
  run_study(
    study, _objective, num_trials=4, on_trial=lambda t: order.append(t.number)
  )
  assert order == [2, 0, 1, 3]
  assert study.trials[2].params == {"x": 0.125}


def test_a_live_worker_on_this_host_is_not_disturbed(tmp_path):
  study = _open(tmp_path / "journal")
  with subprocess.Popen(["sleep", "60"]) as other:
    start = owner._process_start(other.pid)
    _abandon(
      study, 0, owner.this_process()._replace(pid=other.pid, start=start)
    )
    message = rf"another search \(pid {other.pid}\) is at work"
    try:
      with pytest.raises(InputError, match=message):
        run_study(study, _objective, num_trials=4)
    finally:
      other.kill()
  run_study(study, _objective, num_trials=4)
  assert len(study.trials) == 4


def test_another_hosts_trial_is_adopted_after_ten_minutes(tmp_path):
  study = _open(tmp_path / "journal")
  elsewhere = owner.Owner("elsewhere", 7, "1")
  _abandon(study, 0, elsewhere, time.time() - 590)
  with pytest.raises(InputError, match=r"elsewhere.*try again in \d+ seconds"):
    run_study(study, _objective, num_trials=4)
  _abandon(study, 0, elsewhere, time.time() - 601)
  run_study(study, _objective, num_trials=4)
  assert {t.state for t in study.trials} == {TrialState.COMPLETE}


def test_a_sampler_without_a_space_needs_one(tmp_path):
  study = open_study(
    tmp_path / "journal",
    "search",
    sampler=RandomSampler(seed=0),
    fingerprint={},
    num_trials=2,
  )
  with pytest.raises(InputError, match="search space"):
    run_study(study, _objective, num_trials=2)
  run_study(study, _objective, num_trials=2, space=_SPACE)
  assert all(0 <= t.params["x"] <= 1 for t in study.trials)


def test_this_process_is_alive_and_a_finished_one_is_not():
  assert owner.is_alive(owner.this_process())
  assert owner.this_process().pid == os.getpid()
  with subprocess.Popen(["true"]) as finished:
    start = owner._process_start(finished.pid) or "0"
    finished.wait()
  gone = owner.this_process()._replace(pid=finished.pid, start=start)
  assert not owner.is_alive(gone)
  assert not owner.is_alive(owner.this_process()._replace(host="elsewhere"))
