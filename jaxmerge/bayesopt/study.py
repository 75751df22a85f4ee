"""A study with an exact budget, that survives being killed at any moment.

The budget is a row of empty slots (waiting trials) 0 .. N-1, created once. A
trial is claimed by a lease in its attributes; a trial whose owner is dead is
finished under its own number and parameters before anything new begins, so
that a search that was killed and run again equals one that never was.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from jaxmerge import owner
from jaxmerge.bayesopt.journal import open_journal
from jaxmerge.errors import InputError

FINGERPRINT = "fingerprint"
FAILURE = "failure"
# One attribute an owner: two that claim at once do not overwrite each other.
LEASE_PREFIX = "lease:"
_LEASE_SECONDS = 600.0


@dataclasses.dataclass(frozen=True)
class Observation:
  """What one evaluation gave.

  Attributes:
    value: the score that the study minimises or maximises.
    stderr: its known standard error (of a paired difference), 0 if exact.
    attrs: further JSON values to keep with the trial.
  """

  value: float
  stderr: float = 0.0
  attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Objective = Callable[[int, dict[str, float]], Observation]


@dataclasses.dataclass(frozen=True)
class _Lease:
  owner: owner.Owner
  taken_at: float


def _open_storage(storage: str | os.PathLike[str]) -> BaseStorage:
  address = os.fspath(storage)
  if "://" not in address:
    return open_journal(address)
  if address.startswith(("gs://", "s3://")):
    raise InputError(
      f"a study cannot live in an object store ({address}): give a local path"
      f" or a database URL such as postgresql://..."
    )
  # SQLAlchemy comes with Optuna; its errors are those of a bad URL.
  import sqlalchemy.exc

  try:
    return RDBStorage(address)
  except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
    raise InputError(f"cannot open the study storage {address}: {error}") from (
      error
    )


def _check_fingerprint(study: Study, fingerprint: Mapping[str, Any]) -> None:
  """Writes the fingerprint of a new study, compares that of an old one."""
  wanted = json.loads(json.dumps(dict(fingerprint)))
  found = study.user_attrs.get(FINGERPRINT)
  if found is None:
    if study.get_trials(deepcopy=False):
      raise InputError(
        f"the study {study.study_name!r} was not made by this program:"
        f" choose another name"
      )
    study.set_user_attr(FINGERPRINT, wanted)
    return
  differing = [
    key
    for key in sorted(wanted.keys() | found.keys())
    if key not in wanted or key not in found or wanted[key] != found[key]
  ]
  if differing:
    raise InputError(
      [
        f"the study {study.study_name!r} was made with another {key}"
        f" ({found.get(key)!r}, now {wanted.get(key)!r}):"
        f" choose another name or go back to it"
        for key in differing
      ]
    )


def open_study(
  storage: str | os.PathLike[str],
  name: str,
  *,
  sampler: BaseSampler,
  fingerprint: Mapping[str, Any],
  num_trials: int,
  direction: Literal["minimize", "maximize"] = "minimize",
) -> Study:
  """Opens or creates a study with `num_trials` slots.

  Safe to be killed and repeated; a larger `num_trials` adds slots to an old
  study.

  Args:
    storage: path of a journal file, or a database URL.
    name: of the study in its storage.
    sampler: asked for every trial.
    fingerprint: JSON values that tell this search (config, inputs) from others.
    num_trials: the budget N.
    direction: "minimize" or "maximize".

  Raises:
    InputError: a damaged journal, an unusable storage, a study of another
      direction or fingerprint under this name (one problem a differing key).
  """
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  if num_trials < 1:
    raise InputError(f"num_trials must be >= 1, got {num_trials}")
  study = optuna.create_study(
    storage=_open_storage(storage),
    study_name=name,
    sampler=sampler,
    direction=direction,
    load_if_exists=True,
  )
  if study.direction.name.lower() != direction:
    raise InputError(
      f"the study {name!r} was made to {study.direction.name.lower()},"
      f" not to {direction}"
    )
  _check_fingerprint(study, fingerprint)
  # Two processes may add too many: run_study leaves numbers >= N alone.
  for _ in range(num_trials - len(study.get_trials(deepcopy=False))):
    study.enqueue_trial({})
  return study


def _leases(trial: FrozenTrial) -> list[_Lease]:
  return [
    _Lease(owner.Owner(*value["owner"]), value["taken_at"])
    for key, value in trial.system_attrs.items()
    if key.startswith(LEASE_PREFIX)
  ]


def _take_lease(study: Study, trial: FrozenTrial) -> None:
  me = owner.this_process()
  study._storage.set_trial_system_attr(
    trial._trial_id,
    LEASE_PREFIX + ":".join(map(str, me)),
    {"owner": list(me), "taken_at": time.time()},
  )


def _check_abandoned(trial: FrozenTrial) -> None:
  """Raises unless every owner of a running trial is dead, or is ourselves."""
  me = owner.this_process()
  for lease in _leases(trial):
    if lease.owner == me:
      continue
    if owner.is_alive(lease.owner):
      raise InputError(
        f"another search (pid {lease.owner.pid}) is at work on this study:"
        f" trial {trial.number} is running"
      )
    age = time.time() - lease.taken_at
    if not owner.is_here(lease.owner) and age < _LEASE_SECONDS:
      raise InputError(
        f"trial {trial.number} is running on {lease.owner.host}"
        f" (pid {lease.owner.pid}): if that search is dead, try again in"
        f" {math.ceil(_LEASE_SECONDS - age)} seconds"
      )


def _claim(study: Study, num_trials: int) -> int | None:
  """Claims the next trial: a dead worker's first. None when all are done.

  The lease is written before the state, so that a running trial always says
  whose it is.
  """
  slots = [t for t in study.get_trials(deepcopy=False) if t.number < num_trials]
  # Every running trial is judged before any is taken.
  running = [t for t in slots if t.state == TrialState.RUNNING]
  for trial in running:
    _check_abandoned(trial)
  if running:
    _take_lease(study, running[0])
    return running[0]._trial_id
  for trial in slots:
    if trial.state == TrialState.WAITING:
      _take_lease(study, trial)
      if not study._storage.set_trial_state_values(
        trial._trial_id, TrialState.RUNNING
      ):
        raise InputError(
          f"another search is at work on this study: it took trial"
          f" {trial.number}"
        )
      return trial._trial_id
  return None


def _failure(observation: Observation) -> str | None:
  if not math.isfinite(observation.value):
    return f"the score is not finite ({observation.value})"
  if not (math.isfinite(observation.stderr) and observation.stderr >= 0):
    return f"the standard error is not usable ({observation.stderr})"
  return None


def _finish(study: Study, trial: Trial, observation: Observation) -> None:
  for key, value in observation.attrs.items():
    trial.set_user_attr(key, value)
  failure = _failure(observation)
  if failure is not None:
    trial.set_user_attr(FAILURE, failure)
    study.tell(trial, state=TrialState.FAIL)
    return
  trial.set_user_attr("stderr", float(observation.stderr))
  study.tell(trial, float(observation.value))


def run_study(
  study: Study,
  objective: Objective,
  *,
  num_trials: int,
  on_trial: Callable[[FrozenTrial], None] | None = None,
  space: Mapping[str, BaseDistribution] | None = None,
) -> None:
  """Evaluates trials 0 .. num_trials - 1 that are not finished yet.

  A score or standard error that is not finite fails its trial, with the reason
  in its user attribute "failure", and costs its unit of the budget. What the
  objective raises goes through; its trial is finished by the next run.

  Args:
    study: from open_study.
    objective: maps number and parameters to an observation; deterministic, or
      a search that was killed will not equal one that was not.
    num_trials: the budget N; surplus slots of the study are left alone.
    on_trial: called with each trial that this call finishes.
    space: distributions of the parameters; by default those that the sampler
      knows before the first trial (a simplex).

  Raises:
    InputError: another search is at work on the study, or no space is known.
  """
  while (trial_id := _claim(study, num_trials)) is not None:
    # Optuna may hold trials from before the claim for samplers that use them.
    study._thread_local.cached_all_trials = None
    trial = Trial(study, trial_id)
    distributions = space
    if distributions is None:
      distributions = study.sampler.infer_relative_search_space(
        study, study._storage.get_trial(trial_id)
      )
    if not distributions:
      raise InputError("the sampler knows no search space: give one")
    params = {
      name: trial._suggest(name, distribution)
      for name, distribution in distributions.items()
    }
    _finish(study, trial, objective(trial.number, params))
    if on_trial is not None:
      on_trial(study._storage.get_trial(trial_id))
