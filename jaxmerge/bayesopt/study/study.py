"""A study with an exact budget, for any number of searchers, killed or not.

The budget is a row of empty slots (waiting trials) 0 .. N-1, created once.
Searchers share them by leases (leases.py); a trial whose owner is dead is
finished under its own number and parameters before anything new begins, so that
a search that was killed and run again equals one that never was.
"""

import contextlib
import math
import os
import time
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from jaxmerge.bayesopt.study import leases
from jaxmerge.bayesopt.study.identity import check_identity
from jaxmerge.bayesopt.study.optuna_adapter import storage_of
from jaxmerge.bayesopt.study.scheduler import Budget, Ending, Rules, claim
from jaxmerge.bayesopt.study.storage import existing_storage, open_storage
from jaxmerge.errors import InputError

FAILURE = "failure"
PARTIAL_VALUE = "partial_value"
CONSTRAINT_STDERRS = "constraint_stderrs"
_NO_LIMITS = Budget()


class Observation(NamedTuple):
  """The result of one evaluation.

  Attributes:
    value: the score that the study minimises or maximises.
    stderr: its known standard error (of a paired difference), 0 if exact.
    attrs: further JSON values to keep with the trial.
    tokens: number of tokens evaluated.
    pruned: the evaluation stopped early, beaten beyond noise; `value` and
      `stderr` are what the part that was evaluated tells of the whole.
    constraints: by name, numbers that are at most 0 where it is feasible, as
      Optuna's trials have them.
    constraint_stderrs: their known standard errors, by name.
  """

  value: float
  stderr: float = 0.0
  attrs: Mapping[str, Any] = types.MappingProxyType({})
  tokens: int = 0
  pruned: bool = False
  constraints: Mapping[str, float] = types.MappingProxyType({})
  constraint_stderrs: Mapping[str, float] = types.MappingProxyType({})


# Of a trial's number and parameters.
Objective = Callable[[int, dict[str, float]], Observation]


def open_study(
  storage: str | os.PathLike[str] | None,
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
  study. `storage` is as for open_storage, `identity` and what is `described` as
  for check_identity.

  Raises:
    InputError: a damaged journal, an unusable storage, a study of another
      direction or identity under this name (one problem a differing key).
  """
  optuna.logging.set_verbosity(optuna.logging.WARNING)
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

  Arguments and errors are those of open_study and of check_identity. None where
  there is none, or where looking would need a connection.
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


def _params(held: leases.Held) -> dict[str, float]:
  """Asks the sampler; a dead searcher's trial keeps what it was given."""
  study, trial = held.study, Trial(held.study, held.trial_id)
  space = study.sampler.infer_relative_search_space(study, held.trial())
  if not space:
    raise InputError("the sampler knows no search space")
  params = {}
  for name, d in space.items():
    assert isinstance(d, FloatDistribution), f"{name} is no float"
    params[name] = trial.suggest_float(
      name, d.low, d.high, step=d.step, log=d.log
    )
  return params


class _Outcome(NamedTuple):
  """The end of a trial; attributes are the user's."""

  state: TrialState
  values: list[float] | None
  attrs: dict[str, Any]
  constraints: Mapping[str, float] = types.MappingProxyType({})


def _evaluate(
  objective: Objective, number: int, params: dict[str, float]
) -> _Outcome:
  began = time.monotonic()
  found = objective(number, params)
  value, stderr = float(found.value), float(found.stderr)
  constraints = {name: float(c) for name, c in found.constraints.items()}
  errors = {name: float(se) for name, se in found.constraint_stderrs.items()}
  attrs = {
    **found.attrs,
    **({CONSTRAINT_STDERRS: errors} if errors else {}),
    "seconds": time.monotonic() - began,
    "tokens": int(found.tokens),
  }
  if not math.isfinite(value):
    failure = f"the score is not finite ({value})"
  elif not all(0 <= error < math.inf for error in (stderr, *errors.values())):
    failure = f"the standard error is not usable ({stderr})"
  elif not all(map(math.isfinite, constraints.values())):
    failure = f"a constraint is not finite ({constraints})"
  elif found.pruned:
    attrs |= {"stderr": stderr, PARTIAL_VALUE: value}
    return _Outcome(TrialState.PRUNED, None, attrs, constraints)
  else:
    attrs["stderr"] = stderr
    return _Outcome(TrialState.COMPLETE, [value], attrs, constraints)
  return _Outcome(TrialState.FAIL, None, {**attrs, FAILURE: failure})


def _set_constraints(
  held: leases.Held, constraints: Mapping[str, float]
) -> None:
  """Keeps them as Optuna does; a dead searcher may have kept the same."""
  trial = Trial(held.study, held.trial_id)
  for name in sorted(constraints.keys() - held.trial().constraints.keys()):
    trial.set_constraint(name, constraints[name])


def _run_trial(held: leases.Held, objective: Objective) -> bool:
  """Asks, evaluates, records; False if another searcher finished the trial."""
  study, storage = held.study, storage_of(held.study)
  try:
    with leases.heartbeat(held) as errors:
      number, params = held.trial().number, _params(held)
      state, values, attrs, constraints = _evaluate(objective, number, params)
    if errors:
      attrs["lease_error"] = list(dict.fromkeys(errors))
    if held.is_taken_over():
      held.withdraw()
      return False
    for key, value in attrs.items():
      storage.set_trial_user_attr(held.trial_id, key, value)
    _set_constraints(held, constraints)
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
  limits: Budget = _NO_LIMITS,
  has_converged: Callable[[Sequence[FrozenTrial]], bool] | None = None,
  is_sequential: bool = False,
) -> Ending:
  """Evaluates trials 0 .. num_trials - 1 that are not finished yet.

  Any number of processes may do so at once, each with one call at a time. Each
  returns when all trials are finished, by whomever; a process that dies leaves
  its trial to the others.

  A score, standard error or constraint that is not finite fails its trial, with
  the reason in its user attribute "failure". A pruned observation leaves a
  pruned trial with its user attribute "partial_value". Both cost their unit of
  the budget.
  What the objective raises goes through; its trial is left to other searchers
  and to the next run.

  Each finished trial has the user attributes "seconds" (of the evaluation that
  finished it), "tokens" and, where its lease could not be renewed meanwhile,
  "lease_error".

  Args:
    study: from open_study.
    objective: deterministic, or a search that was killed will not equal one
      that was not.
    num_trials: the budget N; surplus slots of the study are left alone.
    on_trial: called with each trial that this call finishes.
    limits: totals over all trials. No trial is started that would exceed one
      if it cost as much as the dearest so far; a larger limit goes on later.
    has_converged: says of the finished trials, by number, whether no further
      one is to start; of all that follow on them it must say the same.
    is_sequential: a trial starts when all before it are finished, by whomever.

  Returns:
    "done", or why trials are left waiting: "converged", "seconds" or "tokens".

  Raises:
    InputError: the sampler knows no search space before the first trial, or
      an object store cannot be reached.
  """
  rules = Rules(limits, has_converged, is_sequential)
  while isinstance(held := claim(study, num_trials, rules), leases.Held):
    if _run_trial(held, objective) and on_trial is not None:
      on_trial(held.trial())
  return held
