"""A study with an exact budget, for any number of searchers, killed or not.

The budget is a row of empty slots (waiting trials) 0 .. N-1, created once.
Searchers, of one host or of many, share them by leases (leases.py); a trial
whose owner is dead is finished under its own number and parameters before
anything new begins, so that a search that was killed and run again equals one
that never was.
"""

import contextlib
import dataclasses
import math
import os
import time
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from jaxmerge.bayesopt.study import leases
from jaxmerge.bayesopt.study.budget import Budget
from jaxmerge.bayesopt.study.identity import check_identity, check_known
from jaxmerge.bayesopt.study.optuna_adapter import storage_of, suggest
from jaxmerge.bayesopt.study.scheduler import Ending, claim
from jaxmerge.bayesopt.study.storage import existing_storage, open_storage
from jaxmerge.errors import InputError

FAILURE = "failure"
PARTIAL_VALUE = "partial_value"
LEASE_ERROR = "lease_error"
_NO_LIMITS = Budget()


@dataclasses.dataclass(frozen=True)
class Observation:
  """What one evaluation gave.

  Attributes:
    value: the score that the study minimises or maximises.
    stderr: its known standard error (of a paired difference), 0 if exact.
    attrs: further JSON values to keep with the trial.
    tokens: number of tokens evaluated.
    pruned: the evaluation stopped early, beaten beyond noise; `value` and
      `stderr` are what the part that was evaluated tells of the whole.
  """

  value: float
  stderr: float = 0.0
  attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tokens: int = 0
  pruned: bool = False


class EvaluationFailed(Exception):
  """Raised by an objective that cannot score this point, and never will.

  Args:
    reason: kept with the trial, which fails.
    tokens: number of tokens evaluated before.
  """

  def __init__(self, reason: str, tokens: int = 0):
    self.reason = reason
    self.tokens = tokens
    super().__init__(reason)


Objective = Callable[[int, dict[str, float]], Observation]


def open_study(
  storage: str | os.PathLike[str],
  name: str,
  *,
  sampler: BaseSampler,
  identity: Mapping[str, Any],
  num_trials: int,
  direction: Literal["minimize", "maximize"] = "minimize",
  described: Mapping[str, str] = types.MappingProxyType({}),
) -> Study:
  """Opens or creates a study with `num_trials` slots.

  Safe to be killed and repeated; a larger `num_trials` adds slots to an old
  study.

  Args:
    storage: path of a journal file, a database URL, or a gs://, s3:// or
      file:// address under which the journal has one object an entry.
    name: of the study in its storage.
    sampler: asked for every trial.
    identity: JSON values that tell this search (config, inputs) from others.
    num_trials: the budget N.
    direction: "minimize" or "maximize".
    described: what keys of the identity that are hashes stand for, to say
      it where they differ.

  Raises:
    InputError: a damaged journal, an unusable storage, a study of another
      direction or identity under this name (one problem a differing key).
  """
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  if num_trials < 1:
    raise InputError(f"num_trials must be >= 1, got {num_trials}")
  study = optuna.create_study(
    storage=open_storage(storage),
    study_name=name,
    sampler=sampler,
    direction=direction,
    load_if_exists=True,
  )
  _check_direction(study, direction)
  check_identity(study, identity, described)
  # Two processes may add too many: run_study leaves numbers >= N alone.
  while len(study.get_trials(deepcopy=False)) < num_trials:
    study.enqueue_trial({})
  return study


def find_study(
  storage: str | os.PathLike[str],
  name: str,
  *,
  identity: Mapping[str, Any],
  direction: Literal["minimize", "maximize"] = "minimize",
  described: Mapping[str, str] = types.MappingProxyType({}),
  unknown: Collection[str] = (),
) -> Study | None:
  """The study that open_study would go on with, to look at; writes nothing.

  Args:
    storage, name, direction, described: as for open_study.
    identity: all of it but the keys of `unknown`.
    unknown: keys whose values are not known yet.

  Returns:
    None where there is none, or where looking would need a connection.

  Raises:
    InputError: as open_study.
  """
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  there = existing_storage(storage)
  if there is None or name not in optuna.get_all_study_names(there):
    return None
  study = optuna.load_study(study_name=name, storage=there)
  _check_direction(study, direction)
  check_known(study, identity, described, unknown)
  return study


def _check_direction(study: Study, direction: str) -> None:
  if study.direction.name.lower() != direction:
    raise InputError(
      f"the study {study.study_name!r} was made to "
      f"{study.direction.name.lower()}, not to {direction}"
    )


def _params(
  study: Study, trial_id: int, space: Mapping[str, BaseDistribution] | None
) -> dict[str, Any]:
  """Asks the sampler; a dead searcher's trial keeps what it was given."""
  trial = Trial(study, trial_id)
  if space is None:
    space = study.sampler.infer_relative_search_space(
      study, storage_of(study).get_trial(trial_id)
    )
  if not space:
    raise InputError("the sampler knows no search space: give one")
  return {
    name: suggest(trial, name, distribution)
    for name, distribution in space.items()
  }


@dataclasses.dataclass(frozen=True)
class _Outcome:
  state: TrialState
  values: list[float] | None
  attrs: dict[str, Any]


def _evaluate(
  objective: Objective, number: int, params: dict[str, Any]
) -> _Outcome:
  """What becomes of a trial: its state, values and user attributes."""
  began = time.monotonic()
  try:
    observation = objective(number, params)
  except EvaluationFailed as error:
    observation = Observation(0.0, tokens=error.tokens)
    failure: str | None = error.reason
  else:
    failure = _failure(observation)
  attrs = {
    **observation.attrs,
    "seconds": time.monotonic() - began,
    "tokens": int(observation.tokens),
  }
  if failure is not None:
    return _Outcome(TrialState.FAIL, None, {**attrs, FAILURE: failure})
  value = float(observation.value)
  attrs["stderr"] = float(observation.stderr)
  if observation.pruned:
    attrs[PARTIAL_VALUE] = value
    return _Outcome(TrialState.PRUNED, None, attrs)
  return _Outcome(TrialState.COMPLETE, [value], attrs)


def _failure(observation: Observation) -> str | None:
  if not math.isfinite(observation.value):
    return f"the score is not finite ({observation.value})"
  if not (math.isfinite(observation.stderr) and observation.stderr >= 0):
    return f"the standard error is not usable ({observation.stderr})"
  return None


def _finish(held: leases.Held, outcome: _Outcome) -> bool:
  """Records an outcome; False if another searcher took the trial over."""
  if held.is_taken_over():
    held.withdraw()
    return False
  storage = storage_of(held.study)
  for key, value in outcome.attrs.items():
    storage.set_trial_user_attr(held.trial_id, key, value)
  held.study.sampler.after_trial(
    held.study, storage.get_trial(held.trial_id), outcome.state, outcome.values
  )
  return storage.set_trial_state_values(
    held.trial_id, outcome.state, outcome.values
  )


def _run_trial(
  held: leases.Held,
  objective: Objective,
  space: Mapping[str, BaseDistribution] | None,
) -> bool:
  """Asks, evaluates, records; whether this call finished the trial."""
  try:
    number = storage_of(held.study).get_trial(held.trial_id).number
    with leases.heartbeat(held) as errors:
      params = _params(held.study, held.trial_id, space)
      outcome = _evaluate(objective, number, params)
    if errors:
      outcome.attrs[LEASE_ERROR] = list(dict.fromkeys(errors))
    return _finish(held, outcome)
  except BaseException as error:
    # For whoever comes next; a live process's lease would keep others off.
    with contextlib.suppress(Exception):
      held.withdraw()
    # This process stood still so long that another finished the trial.
    if isinstance(error, UpdateFinishedTrialError) and held.is_finished():
      return False
    raise


def run_study(
  study: Study,
  objective: Objective,
  *,
  num_trials: int,
  on_trial: Callable[[FrozenTrial], None] | None = None,
  space: Mapping[str, BaseDistribution] | None = None,
  limits: Budget = _NO_LIMITS,
  has_converged: Callable[[Sequence[FrozenTrial]], bool] | None = None,
) -> Ending:
  """Evaluates trials 0 .. num_trials - 1 that are not finished yet.

  Any number of processes may run one study at once, each with one call at a
  time. Each returns when all trials are finished, by whomever; a process that
  dies leaves its trial to the others.

  A score or standard error that is not finite, or an EvaluationFailed, fails
  its trial, with the reason in its user attribute "failure". A pruned
  observation leaves a pruned trial with its user attribute "partial_value".
  Both cost their unit of the budget. What else the objective raises goes
  through; its trial is left to other searchers and to the next run.

  Each finished trial has the user attributes "seconds" (of the evaluation that
  finished it), "tokens" and, where its lease could not be renewed meanwhile,
  "lease_error".

  Args:
    study: from open_study.
    objective: maps number and parameters to an observation; deterministic, or
      a search that was killed will not equal one that was not.
    num_trials: the budget N; surplus slots of the study are left alone.
    on_trial: called with each trial that this call finishes.
    space: distributions of the parameters; by default those that the sampler
      knows before the first trial (a simplex).
    limits: totals over all trials. No trial is started that would exceed one
      if it cost as much as the dearest so far; a larger limit goes on later.
    has_converged: says of the finished trials, by number, whether no further
      one is to start; of all that follow on them it must say the same.

  Returns:
    "done", or what left trials waiting: "converged", "seconds" or "tokens".

  Raises:
    InputError: no space is known, or an object store cannot be reached.
  """
  while isinstance(
    held := claim(study, num_trials, limits, has_converged), leases.Held
  ):
    if _run_trial(held, objective, space) and on_trial is not None:
      on_trial(storage_of(study).get_trial(held.trial_id))
  return held
