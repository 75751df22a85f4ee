"""From the trials of a study to those of a report."""

import math
from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt import hedge
from jaxmerge.bayesopt.study import FAILURE, PARTIAL_VALUE
from jaxmerge.bayesopt.trials import ASKED, asked_by, stderr_of
from jaxmerge.evaluation.objective import Domain
from jaxmerge.reporting.results import STOPPED_EARLY, Trial


def study_trials(trials: Sequence[FrozenTrial], domain: Domain) -> list[Trial]:
  """What a report shows of trials that have ended, scored or not.

  Args:
    trials: ended ones of a study over the simplex: complete, failed, pruned.
    domain: of their weights; those of several groups are shown by their mean.
  """
  return [_trial(trial, domain) for trial in trials]


def _trial(trial: FrozenTrial, domain: Domain) -> Trial:
  loss, failure = _outcome(trial)
  stderr = stderr_of(trial)
  record = trial.system_attrs.get(ASKED, {})
  gains = record.get("gains", {})
  odds_J = hedge.probabilities(np.array(list(gains.values()))) if gains else ()
  predicted = record.get("predicted")
  return Trial(
    number=trial.number,
    weights=dict(zip(domain.steps, domain.mean_weights(trial.params))),
    loss=loss,
    stderr=stderr,
    asked_by=asked_by(trial),
    odds=dict(zip(gains, map(float, odds_J))),
    predicted_mean=predicted and float(predicted["mean"]),
    # The sampler predicts the loss itself; its measurement is noisy.
    predicted_std=predicted
    and math.hypot(predicted["std"], predicted["noise_share"] * stderr),
    failure=failure,
  )


def _outcome(trial: FrozenTrial) -> tuple[float, str]:
  """Loss, and why it is none of the whole split."""
  if trial.state == TrialState.COMPLETE:
    assert trial.value is not None
    return trial.value, ""
  if trial.state == TrialState.PRUNED:
    return float(trial.user_attrs.get(PARTIAL_VALUE, math.nan)), STOPPED_EARLY
  return math.nan, str(trial.user_attrs.get(FAILURE, "no reason recorded"))
