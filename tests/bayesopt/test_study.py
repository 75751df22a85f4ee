"""Budget, leases, identities: what is known before any kill."""

import math
import subprocess
import threading
import time

import optuna
import psutil
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

from jaxmerge import process_liveness
from jaxmerge.bayesopt.study import leases
from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.bayesopt.study.study import Observation, open_study, run_study
from jaxmerge.errors import InputError

_ELSEWHERE = process_liveness.Owner("elsewhere", 7, 1.0)
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


def _open(storage, num_trials=4, identity=None, **kwargs):
  return open_study(
    storage,
    "search",
    sampler=CountingSampler(),
    identity=identity or {"config": "a"},
    num_trials=num_trials,
    **kwargs,
  )


def _lease(study, number, owner_of_lease, age=0.0, turn=1):
  study._storage.set_trial_system_attr(
    study.get_trials()[number]._trial_id,
    leases.LEASE_PREFIX + owner_of_lease.host,
    {
      "owner": list(owner_of_lease),
      "turn": turn,
      "renewed_at": time.time() - age,
      "withdrawn": False,
    },
  )


def _abandon(study, number, owner_of_lease, age=0.0):
  """Leaves a trial running under somebody's lease, as a dead worker does."""
  _lease(study, number, owner_of_lease, age)
  trial = study.get_trials()[number]
  study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)


@pytest.mark.parametrize("scheme", ["{}/deep/journal.log", "sqlite:///{}/s.db"])
def test_every_slot_is_evaluated_once(tmp_path, scheme):
  study = _open(scheme.format(tmp_path))
  seen = []
  run_study(study, _objective, num_trials=4, on_trial=seen.append)
  assert [t.number for t in seen] == [0, 1, 2, 3]
  for trial in study.trials:
    assert trial.state == TrialState.COMPLETE
    assert 0 <= trial.user_attrs["seconds"] < 60
    assert {k: v for k, v in trial.user_attrs.items() if k != "seconds"} == {
      "n": [trial.number],
      "stderr": 0.01 * trial.number,
      "tokens": 0,
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


def test_a_converged_search_leaves_the_rest_waiting(tmp_path):
  asked = []

  def run(num_trials, until):
    study = _open(tmp_path / "j", num_trials)
    ending = run_study(
      study,
      lambda number, params: asked.append(number) or _objective(number, params),
      num_trials=num_trials,
      has_converged=lambda trials: (
        [t.number for t in trials] == list(range(len(trials)))
        and len(trials) >= until
      ),
    )
    return ending, [t.state.name for t in study.get_trials()]

  states = ["COMPLETE"] * 3 + ["WAITING"] * 2
  assert run(5, until=3) == ("converged", states)
  assert run(5, until=3) == ("converged", states)
  assert asked == [0, 1, 2]
  assert run(4, until=9) == ("done", ["COMPLETE"] * 4 + ["WAITING"])
  # The last of the budget: there is nothing left to wait.
  assert run(4, until=4)[0] == "done"


def test_a_converged_search_finishes_a_dead_searchers_trial(tmp_path):
  study = _open(tmp_path / "j", 5)
  _abandon(study, 1, _ELSEWHERE, age=1e4)
  ending = run_study(
    study, _objective, num_trials=5, has_converged=lambda trials: True
  )
  assert ending == "converged"
  found = {t.number for t in study.get_trials() if t.state.is_finished()}
  assert 1 in found
  assert len(found) < 5


def test_another_identity_or_direction_is_refused(tmp_path):
  path = tmp_path / "journal"
  _open(path, identity={"config": "a", "inputs": [1, 2], "same": 1})
  _open(path, identity={"config": "a", "inputs": (1, 2), "same": 1})
  with pytest.raises(InputError) as caught:
    _open(path, identity={"config": "b", "inputs": [2], "same": 1})
  assert len(caught.value.problems) == 2
  for key, problem in zip(
    ["config", "inputs"], caught.value.problems, strict=True
  ):
    assert f"another {key} " in problem
  with pytest.raises(InputError, match="without new .*another version"):
    _open(path, identity={"config": "a", "inputs": [1, 2], "new": 1})
  with pytest.raises(InputError, match="made to minimize"):
    _open(
      path,
      identity={"config": "a", "inputs": [1, 2], "same": 1},
      direction="maximize",
    )


def test_a_foreign_study_is_refused(tmp_path):
  url = f"sqlite:///{tmp_path}/s.db"
  foreign = optuna.create_study(storage=url, study_name="search")
  foreign.enqueue_trial({})
  with pytest.raises(InputError, match="not made by this program"):
    _open(url)


@pytest.mark.parametrize(
  "storage", ["gs://bucket", "s3://", "nosuch://host/db", "file:///proc/none"]
)
def test_unusable_storages_are_refused(storage):
  with pytest.raises(InputError):
    _open(storage)


def test_a_password_is_not_shown(tmp_path):
  with pytest.raises(InputError, match=r"//me:\*\*\*@host") as caught:
    _open("nosuch://me:secret@host/db")
  assert "secret" not in str(caught.value)


# One that ended before this process had its number, or a lease of an earlier
# version, which told the start in the words of the operating system.
@pytest.mark.parametrize("start", [0.0, "12345"])
def test_a_dead_workers_trial_comes_first_with_its_point(tmp_path, start):
  study = _open(tmp_path / "journal")
  me = process_liveness.this_process()
  _abandon(study, 2, me._replace(start=start))
  study._storage.set_trial_param(
    study.trials[2]._trial_id, "x", 0.125, _SPACE["x"]
  )
  order = []
  run_study(
    study, _objective, num_trials=4, on_trial=lambda t: order.append(t.number)
  )
  assert order == [2, 0, 1, 3]
  assert study.trials[2].params == {"x": 0.125}


def _asleep():
  return subprocess.Popen(["sleep", "60"])


def _owner_of(process):
  return process_liveness.Owner(
    process_liveness.this_process().host,
    process.pid,
    psutil.Process(process.pid).create_time(),
  )


def test_a_live_workers_trial_is_left_to_it_until_it_dies(tmp_path):
  study = _open(tmp_path / "journal")
  order = []
  with _asleep() as other:
    _abandon(study, 0, _owner_of(other))

    def objective(number, params):
      order.append(number)
      if number == 3:
        threading.Timer(0.3, other.kill).start()
      return _objective(number, params)

    run_study(study, objective, num_trials=4)
  assert order == [1, 2, 3, 0]
  assert {t.state for t in study.trials} == {TrialState.COMPLETE}


def test_another_hosts_trial_is_taken_over_when_its_lease_expires(tmp_path):
  study = _open(tmp_path / "journal")
  _abandon(study, 0, _ELSEWHERE)
  order = []

  def objective(number, params):
    order.append(number)
    if number == 3:
      _lease(study, 0, _ELSEWHERE, leases.EXPIRY_SECONDS)
    elif number > 0:
      _lease(study, 0, _ELSEWHERE, leases.EXPIRY_SECONDS - 30)
    return _objective(number, params)

  run_study(study, objective, num_trials=4)
  assert order == [1, 2, 3, 0]


def test_two_that_take_over_at_once_step_back_from_each_other(
  tmp_path, monkeypatch
):
  study = _open(tmp_path / "journal", 1)
  _abandon(study, 0, _ELSEWHERE, 1e6)
  write = leases.Held.renew
  evaluated = []
  with _asleep() as rival:
    threading.Timer(0.5, rival.kill).start()

    def renew(held):
      # The rival read the trial before our lease, and writes its own now.
      if rival.poll() is None:
        _lease(study, 0, _owner_of(rival), turn=2)
      write(held)

    def objective(number, params):
      evaluated.append(rival.poll() is None)
      return _objective(number, params)

    monkeypatch.setattr(leases.Held, "renew", renew)
    run_study(study, objective, num_trials=1)
  assert evaluated == [False]


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_result_is_dropped_where_another_took_the_trial(
  tmp_path, is_finished
):
  study = _open(tmp_path / "journal", 2)
  evaluated, reported = [], []

  def objective(number, params):
    evaluated.append(number)
    other = _open(tmp_path / "journal", 2)
    if evaluated == [0] and is_finished:
      other.tell(0, 0.125)
    elif evaluated == [0]:
      _lease(other, 0, _ELSEWHERE, turn=2)
    elif evaluated == [0, 1] and not is_finished:
      _lease(other, 0, _ELSEWHERE, leases.EXPIRY_SECONDS, turn=2)
    return _objective(number, params)

  on_trial = lambda trial: reported.append(trial.number)
  run_study(study, objective, num_trials=2, on_trial=on_trial)
  assert evaluated == ([0, 1] if is_finished else [0, 1, 0])
  assert reported == evaluated[1:]
  assert (study.trials[0].value == 0.125) == is_finished


def test_leases_are_renewed_until_the_evaluation_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.02)
  study = _open(tmp_path / "journal", 2)

  def renewed_at(number):
    return leases._leases(study.trials[number])[0]["renewed_at"]

  def objective(number, params):
    first, patience = renewed_at(number), time.monotonic() + 20
    while renewed_at(number) == first:
      assert time.monotonic() < patience
    if number == 1:
      raise ZeroDivisionError
    return _objective(number, params)

  with pytest.raises(ZeroDivisionError):
    run_study(study, objective, num_trials=2)
  assert "lease-heartbeat" not in [t.name for t in threading.enumerate()]
  # Nobody alive holds the trial that raised.
  assert [x["withdrawn"] for x in leases._leases(study.trials[1])] == [True]


def test_a_lease_that_cannot_be_renewed_costs_no_evaluation(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.02)
  study = _open(tmp_path / "journal", 1)
  write = leases.Held.renew

  tried = threading.Event()

  def renew(held):
    if threading.current_thread() is not threading.main_thread():
      tried.set()
      raise OSError("no space left")
    write(held)

  def objective(number, params):
    assert tried.wait(20)
    return _objective(number, params)

  monkeypatch.setattr(leases.Held, "renew", renew)
  run_study(study, objective, num_trials=1)
  assert study.trials[0].state == TrialState.COMPLETE
  errors = study.trials[0].user_attrs["lease_error"]
  assert errors == ["OSError: no space left"]


def test_failed_and_pruned_evaluations_cost_their_unit(tmp_path):
  def objective(number, params):
    if number == 0:
      return Observation(math.nan, tokens=5)
    if number == 1:
      return Observation(2.0, 0.1, {"kept": 1}, tokens=3, pruned=True)
    return Observation(math.nan if number == 2 else 1.0, pruned=number == 2)

  study = _open(tmp_path / "journal")
  assert run_study(study, objective, num_trials=4) == "done"
  states = [t.state.name for t in study.trials]
  assert states == ["FAIL", "PRUNED", "FAIL", "COMPLETE"]
  assert "not finite" in study.trials[0].user_attrs["failure"]
  assert [t.user_attrs["tokens"] for t in study.trials] == [5, 3, 0, 0]
  assert study.trials[1].user_attrs["partial_value"] == 2.0
  assert study.trials[1].user_attrs["kept"] == 1
  assert study.trials[1].value is None


def test_a_limit_of_tokens_is_kept_and_a_larger_one_goes_on(tmp_path):
  path = tmp_path / "journal"

  def objective(number, params):
    return Observation(params["x"], tokens=[10, 30, 20, 20, 20][number])

  def run(tokens):
    study = _open(path, 5)
    limits = Budget(tokens=tokens)
    why = run_study(study, objective, num_trials=5, limits=limits)
    return why, [t.state.name for t in study.trials].count("COMPLETE")

  assert run(1) == ("tokens", 1)  # the first always runs
  assert run(39) == ("tokens", 2)  # the second cost more than was expected
  assert run(69) == ("tokens", 2)
  assert run(70) == ("tokens", 3)
  assert run(109) == ("tokens", 4)
  assert run(110) == ("done", 5)


def test_a_limit_of_seconds_counts_all_runs(tmp_path):
  def objective(number, params):
    time.sleep(0.1)
    return _objective(number, params)

  for _ in range(2):
    study = _open(tmp_path / "journal", 6)
    limits = Budget(seconds=0.35)
    why = run_study(study, objective, num_trials=6, limits=limits)
    assert why == "seconds"
  spent = [
    t.user_attrs["seconds"] for t in study.trials if t.state.is_finished()
  ]
  assert sum(spent) + max(spent) > 0.35
  assert sum(spent[:-1]) + max(spent[:-1], default=0) <= 0.35
  assert run_study(study, _objective, num_trials=6) == "done"


def test_running_trials_reserve_their_share_of_a_limit(tmp_path):
  study = _open(tmp_path / "journal", 4)
  alive = []
  with _asleep() as other:

    def objective(number, params):
      if number == 0:
        _abandon(_open(tmp_path / "journal"), 3, _owner_of(other))
      if number == 1:
        threading.Timer(0.3, other.kill).start()
      alive.append((number, other.poll() is None))
      return Observation(params["x"], tokens=10)

    why = run_study(study, objective, num_trials=4, limits=Budget(tokens=30))
  assert why == "tokens"
  # Nothing fits beside 1 and 3 until 3 is finished for the dead.
  assert alive == [(0, True), (1, True), (3, False)]


def test_the_first_trial_under_a_limit_runs_alone(tmp_path):
  study = _open(tmp_path / "journal", 2)
  order = []
  with _asleep() as other:
    _abandon(study, 0, _owner_of(other))
    threading.Timer(0.5, other.kill).start()
    run_study(
      study,
      _objective,
      num_trials=2,
      on_trial=lambda trial: order.append(trial.number),
      limits=Budget(tokens=1000),
    )
  assert order == [0, 1]


def test_the_last_unit_of_a_limit_is_given_once(tmp_path, monkeypatch):
  study = _open(tmp_path / "journal", 3)
  write = leases.Held.renew
  beside = []
  with _asleep() as rival:

    def renew(held):
      # The rival reads the costs when we do, and wants another trial.
      if rival.poll() is None:
        _lease(study, 2, _owner_of(rival))
      write(held)

    def objective(number, params):
      if number == 0:
        monkeypatch.setattr(leases.Held, "renew", renew)
        threading.Timer(0.5, rival.kill).start()
      beside.append(rival.poll() is None)
      return Observation(params["x"], tokens=10)

    why = run_study(study, objective, num_trials=3, limits=Budget(tokens=20))
  assert why == "tokens"
  assert beside == [True, False]


def test_a_sampler_without_a_space_needs_one(tmp_path):
  study = open_study(
    tmp_path / "journal",
    "search",
    sampler=RandomSampler(seed=0),
    identity={},
    num_trials=2,
  )
  with pytest.raises(InputError, match="search space"):
    run_study(study, _objective, num_trials=2)
