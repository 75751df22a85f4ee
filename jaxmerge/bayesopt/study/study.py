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
from jaxmerge.bayesopt.study.identity import check_identity
from jaxmerge.bayesopt.study.optuna_adapter import storage_of, suggest
from jaxmerge.bayesopt.study.scheduler import Ending, claim
from jaxmerge.bayesopt.study.storage import existing_storage, open_storage
from jaxmerge.errors import InputError

FAILURE = "failure"
PARTIAL_VALUE = "partial_value"
_NO_LIMITS = Budget()


@dataclasses.dataclass(frozen=True)
class Observation:
  """The result of one evaluation.

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


# Of a trial's number and parameters.
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
    storage: as for open_storage.
    name: of the study in its storage.
    sampler: asked for every trial.
    identity, described: as for check_identity.
    num_trials: the budget N.
    direction: of the scores.

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
    storage, name, direction: as for open_study.
    identity, described, unknown: as for check_identity.

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
  check_identity(study, identity, described, writes=False, unknown=unknown)
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


def _evaluate(
  objective: Objective, number: int, params: dict[str, Any]
) -> tuple[TrialState, list[float] | None, dict[str, Any]]:
  """The state, values and user attributes of a trial."""
  began = time.monotonic()
  try:
    observation = objective(number, params)
    failure = _failure(observation)
  except EvaluationFailed as error:
    observation = Observation(0.0, tokens=error.tokens)
    failure = error.reason
  attrs = {
    **observation.attrs,
    "seconds": time.monotonic() - began,
    "tokens": int(observation.tokens),
  }
  if failure is not None:
    return TrialState.FAIL, None, {**attrs, FAILURE: failure}
  value = float(observation.value)
  attrs["stderr"] = float(observation.stderr)
  if observation.pruned:
    return TrialState.PRUNED, None, {**attrs, PARTIAL_VALUE: value}
  return TrialState.COMPLETE, [value], attrs


def _failure(observation: Observation) -> str | None:
  if not math.isfinite(observation.value):
    return f"the score is not finite ({observation.value})"
  if not 0 <= observation.stderr < math.inf:
    return f"the standard error is not usable ({observation.stderr})"
  return None


def _run_trial(
  held: leases.Held,
  objective: Objective,
  space: Mapping[str, BaseDistribution] | None,
) -> bool:
  """Asks, evaluates, records; False if another searcher finished the trial."""
  study, storage = held.study, storage_of(held.study)
  try:
    with leases.heartbeat(held) as errors:
      params = _params(study, held.trial_id, space)
      state, values, attrs = _evaluate(objective, held.trial().number, params)
    if errors:
      attrs["lease_error"] = list(dict.fromkeys(errors))
    if held.is_taken_over():
      held.withdraw()
      return False
    for key, value in attrs.items():
      storage.set_trial_user_attr(held.trial_id, key, value)
    study.sampler.after_trial(study, held.trial(), state, values)
    return storage.set_trial_state_values(held.trial_id, state, values)
  except BaseException as error:
    # For whoever comes next; a live process's lease would keep others off.
    with contextlib.suppress(Exception):
      held.withdraw()
    # This process stood still so long that another finished the trial.
    if (
      isinstance(error, UpdateFinishedTrialError)
      and held.trial().state.is_finished()
    ):
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
    objective: deterministic, or a search that was killed will not equal one
      that was not.
    num_trials: the budget N; surplus slots of the study are left alone.
    on_trial: called with each trial that this call finishes.
    space: distributions of the parameters; by default those that the sampler
      knows before the first trial (a simplex).
    limits: totals over all trials. No trial is started that would exceed one
      if it cost as much as the dearest so far; a larger limit goes on later.
    has_converged: says of the finished trials, by number, whether no further
      one is to start; of all that follow on them it must say the same.

  Returns:
    "done", or why trials are left waiting: "converged", "seconds" or "tokens".

  Raises:
    InputError: no space is known, or an object store cannot be reached.
  """
  while isinstance(
    held := claim(study, num_trials, limits, has_converged), leases.Held
  ):
    if _run_trial(held, objective, space) and on_trial is not None:
      on_trial(held.trial())
  return held
