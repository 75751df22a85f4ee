"""From Optuna's trials and a run's log to what a report shows."""

import json
import math

import optuna
import pytest
from etils import epath
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from jaxmerge.bayesopt.trials import ASKED
from jaxmerge.evaluation.objective import Domain
from jaxmerge.merging.groups import Groups
from jaxmerge.reporting.results import STOPPED_EARLY, Point
from jaxmerge.reporting.search_report import report_trial, training_losses
from jaxmerge.simplex.bounds import Bounds

DOMAIN = Domain((450, 600, 750), Groups(("",), None, (1.0,)), Bounds(0.2))
PARAMS = {"w_0": 0.25, "w_1": 0.5, "w_2": 0.25}
WEIGHTS = {450: 0.2, 600: 0.4, 750: 0.4}
RECORD = {
  "asked_by": "pi",
  "params": PARAMS,
  "nominees": {},
  "gains": {"ei": 1.0, "pi": 1.0 + math.log(3.0)},
  "predicted": {"mean": 1.25, "std": 0.003, "noise_share": 0.5},
}


def _trial(**changes):
  arguments = {
    "state": TrialState.COMPLETE,
    "value": 1.2,
    "params": PARAMS,
    "distributions": {name: FloatDistribution(0, 1) for name in PARAMS},
    "user_attrs": {"stderr": 0.008},
    "system_attrs": {ASKED: RECORD},
  }
  frozen = optuna.trial.create_trial(**{**arguments, **changes})
  return report_trial(frozen, DOMAIN)


def test_a_scored_trial():
  trial = _trial()
  assert trial.weights == pytest.approx(WEIGHTS)
  assert (trial.loss, trial.stderr, trial.failure) == (1.2, 0.008, "")
  assert trial.asked_by == "pi"
  assert trial.odds == pytest.approx({"ei": 0.25, "pi": 0.75})
  assert trial.predicted_mean == 1.25
  # The loss scatters by a share of its own error too.
  assert trial.predicted_std == pytest.approx(0.005)


def test_an_acquisition_that_is_new_here_is_taken_as_it_is():
  record = {**RECORD, "asked_by": "kg", "gains": {"kg": 1.0, "pi": 1.0}}
  trial = _trial(system_attrs={ASKED: record})
  assert trial.asked_by == "kg"
  assert trial.odds == {"kg": 0.5, "pi": 0.5}


def test_a_start_was_neither_weighed_nor_predicted():
  for attrs in ({}, {ASKED: {"asked_by": "start", "params": PARAMS}}):
    trial = _trial(system_attrs=attrs)
    assert trial.asked_by == "start"
    assert trial.odds == {}
    assert trial.predicted_mean is None
    assert trial.predicted_std is None


def test_studies_from_before_predictions_were_recorded():
  record = {key: RECORD[key] for key in RECORD if key != "predicted"}
  trial = _trial(system_attrs={ASKED: record})
  assert trial.odds
  assert trial.predicted_mean is None


def test_a_failed_trial_keeps_its_reason():
  trial = _trial(
    state=TrialState.FAIL, value=None, user_attrs={"failure": "no memory"}
  )
  assert math.isnan(trial.loss)
  assert trial.failure == "no memory"
  assert trial.weights == pytest.approx(WEIGHTS)
  other = _trial(state=TrialState.FAIL, value=None, user_attrs={})
  assert other.failure == "no reason recorded"


def test_a_trial_that_was_stopped_keeps_what_it_had():
  trial = _trial(
    state=TrialState.PRUNED, value=None, user_attrs={"partial_value": 1.7}
  )
  assert (trial.loss, trial.failure) == (1.7, STOPPED_EARLY)
  # Optuna gives a pruned trial a value; it is not of the whole split.
  other = _trial(state=TrialState.PRUNED, value=1.6, user_attrs={})
  assert math.isnan(other.loss)


def test_training_losses_but_a_torn_line_and_those_that_diverged(tmp_path):
  workdir = epath.Path(tmp_path)
  assert training_losses(workdir) == []
  records = [
    {"step": step, "tokens": 4096 * step, "loss": loss, "grad_norm": 1.0}
    for step, loss in ((1, 5.0), (2, math.nan), (3, 4.5), (4, 4.0))
  ]
  lines = "".join(json.dumps(record) + "\n" for record in records)
  (tmp_path / "metrics.jsonl").write_text(lines[:-9])
  expected = [Point(1, 4096, 5.0), Point(3, 3 * 4096, 4.5)]
  assert training_losses(workdir) == expected
