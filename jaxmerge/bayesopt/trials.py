"""Trials of a study as observations of the Gaussian process.

D coordinates, N scored trials, M pending ones, J acquisitions.
"""

import math
import numbers
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.gp import surrogate
from jaxmerge.bayesopt.gp.padding import Observations
from jaxmerge.bayesopt.space import Simplices, Space, box_of
from jaxmerge.bayesopt.study.study import CONSTRAINT_STDERRS, PARTIAL_VALUE
from jaxmerge.errors import check

ASKED = "gp_hedge:asked"
GRADIENT = "gradient"
GRADIENT_STDERR = "gradient_stderr"


def asked_by(trial: FrozenTrial) -> str:
  """Who asked a trial: "start", an acquisition's name or "explore".

  "start" also where the point was given and not asked (an enqueued trial).
  """
  record = trial.system_attrs.get(ASKED)
  return str(record["asked_by"]) if record else "start"


def stderr_of(trial: FrozenTrial) -> float:
  """Known standard error of a trial's value, 0 where it is not known."""
  return abs(float(trial.user_attrs.get("stderr", 0.0)))


def lies_in(trial: FrozenTrial, space: Space) -> bool:
  """Says whether a trial has a value for every parameter of a space."""
  return all(
    name in trial.params
    and trial.distributions[name] == distribution
    and math.isfinite(trial.params[name])
    for name, distribution in space.distributions().items()
  )


def problems(
  trial: FrozenTrial, simplex: Simplices | None, use_gradients: bool
) -> list[str]:
  """Says why a scored trial tells the process less than it should.

  A NaN in its gradient is fine: it says that a slope is not known.
  """
  said, name = [], f"trial {trial.number}"
  wanted = simplex.distributions() if simplex else {}
  if missing := sorted(wanted.keys() - trial.params.keys()):
    said.append(
      f"{name} has not suggested {', '.join(missing)}, which `simplex` names; "
      f"it has suggested {', '.join(trial.params) or 'nothing'}"
    )
  said += [
    f"{name}: {param} must be suggested as a float in [0, 1], as `simplex` "
    f"names it; got {found}"
    for param, found in trial.distributions.items()
    if param in wanted and found != wanted[param]
  ]
  if use_gradients:
    slopes = (simplex or box_of(trial.distributions)).distributions()
    said += _gradient_problems(name, trial.user_attrs, slopes)
  return said


def _gradient_problems(
  name: str, attrs: Mapping[str, Any], params: Collection[str]
) -> list[str]:
  wanted = f'a user attribute "{GRADIENT}" of the form {{name: slope}}'
  gradient = attrs.get(GRADIENT)
  if not isinstance(gradient, Mapping):
    got = "none" if gradient is None else type(gradient).__name__
    return [
      f"{name}: use_gradients wants {wanted}, for {', '.join(params)}, set "
      f"before its value is told; got {got}"
    ]
  said = []
  if missing := [param for param in params if param not in gradient]:
    said.append(
      f'{name}: its "{GRADIENT}" lacks {", ".join(missing)}; it has '
      f"{', '.join(map(str, gradient)) or 'nothing'}"
    )
  return said + [
    f'{name}: the slope "{GRADIENT}" of {param} must be a number, got {slope!r}'
    for param, slope in gradient.items()
    if not isinstance(slope, numbers.Real)
  ]


def score_of(trial: FrozenTrial) -> float | None:
  """A trial's value, of a stopped one the estimate; None where unusable."""
  value = trial.value
  if trial.state == TrialState.PRUNED:
    value = trial.user_attrs.get(PARTIAL_VALUE)
  elif trial.state != TrialState.COMPLETE:
    return None
  usable = value is not None and math.isfinite(value + stderr_of(trial))
  return value if usable else None


def is_feasible(trial: FrozenTrial) -> bool:
  """Says whether no constraint of a trial, as Optuna keeps them, is above 0."""
  return all(value <= 0 for value in trial.constraints.values())


def constraint_problems(
  trial: FrozenTrial, others: Iterable[FrozenTrial]
) -> list[str]:
  """Says why the constraints of a scored trial are not those of others."""
  errors = trial.user_attrs.get(CONSTRAINT_STDERRS, {})
  if not isinstance(errors, Mapping) or not all(
    isinstance(error, numbers.Real) for error in errors.values()
  ):
    return [
      f'trial {trial.number}: its "{CONSTRAINT_STDERRS}" must be of the form '
      f"{{name: number}}, got {errors!r}"
    ]
  said = [
    f"trial {trial.number}: its constraint {name!r} is not finite: {value}"
    for name, value in trial.constraints.items()
    if not math.isfinite(value + _constraint_stderr(trial, name))
  ]
  for other in others:
    if score_of(other) is None or other.number == trial.number:
      continue
    differ = trial.constraints.keys() ^ other.constraints.keys()
    return said + [
      f"trial {trial.number} and trial {other.number} are not both told the "
      f"constraint {name!r}, which every trial with a score must have"
      for name in sorted(differ)
    ]
  return said


def _constraint_stderr(trial: FrozenTrial, name: str) -> float:
  return abs(float(trial.user_attrs.get(CONSTRAINT_STDERRS, {}).get(name, 0.0)))


def margins(
  trials: Iterable[FrozenTrial], space: Space, direction: StudyDirection
) -> list[Observations]:
  """By how much trials keep to each constraint, c <= 0: observations of -c.

  Args:
    trials, space, direction: as for `observations`, which there must be.
  """
  trials = list(trials)
  scored = [t for t in trials if score_of(t) is not None]
  observed = observations(trials, space, direction, use_gradients=False)
  assert observed is not None, "no trial has a score"
  check(p for t in scored for p in constraint_problems(t, scored))
  return [
    observed._replace(
      values_N=np.array([-t.constraints[name] for t in scored]),
      stderrs_N=np.array([_constraint_stderr(t, name) for t in scored]),
    )
    for name in sorted(scored[0].constraints)
  ]


def sign_of(direction: StudyDirection) -> float:
  """The sign that makes larger scores better."""
  return 1.0 if direction == StudyDirection.MAXIMIZE else -1.0


def observations(
  trials: Iterable[FrozenTrial],
  space: Space,
  direction: StudyDirection,
  use_gradients: bool,
) -> Observations | None:
  """The trials' scores, in maximisation sign; None where there is none.

  Args:
    trials: that lie in the space; those without a score and not running are
      left out.
    use_gradients: also take d value / d parameter, {name: number}, from the
      user attribute "gradient" and the standard error of a slope from
      "gradient_stderr".
  """
  trials = list(trials)
  scored = [(t, v) for t in trials if (v := score_of(t)) is not None]
  if not scored:
    return None
  sign = sign_of(direction)
  pending = [
    space.coordinates(t.params) for t in trials if t.state == TrialState.RUNNING
  ]
  found = Observations(
    points_NxD=np.stack([space.coordinates(t.params) for t, _ in scored]),
    values_N=np.array([sign * v for _, v in scored]),
    stderrs_N=np.array([stderr_of(t) for t, _ in scored]),
    pending_MxD=pending,
  )
  if not use_gradients:
    return found
  stderrs = [float(t.user_attrs.get(GRADIENT_STDERR, 0.0)) for t, _ in scored]
  return found._replace(
    gradients_NxD=np.stack([sign * _slopes(t, space) for t, _ in scored]),
    gradient_stderrs_N=np.abs(stderrs),
  )


def _slopes(trial: FrozenTrial, space: Space) -> np.ndarray:
  """d value / d coordinate; NaN where a trial has no usable gradient."""
  names = space.distributions()
  gradient = trial.user_attrs.get(GRADIENT)
  if gradient is None or not set(names) <= set(gradient):
    return np.full(len(names), np.nan)
  slopes_D = np.array([gradient[name] for name in names])
  return slopes_D * space.spans(trial.params)


def latest_portfolio(
  trials: Iterable[FrozenTrial],
  number: int,
  space: Space,
  acquisitions: Sequence[str],
) -> tuple[np.ndarray, np.ndarray] | None:
  """Nominees (JxD) and gains (J) of the last finished trial before this one."""
  earlier = [t for t in trials if t.number < number and t.state.is_finished()]
  names = space.distributions().keys()
  for trial in sorted(earlier, key=lambda t: t.number, reverse=True):
    record = trial.system_attrs.get(ASKED, {})
    nominees = record.get("nominees", {})
    if set(nominees) == set(acquisitions) and all(
      nominee.keys() == names for nominee in nominees.values()
    ):
      return (
        np.stack([space.coordinates(nominees[a]) for a in acquisitions]),
        np.array([record["gains"][a] for a in acquisitions]),
      )
  return None


def recommended(
  trials: Sequence[FrozenTrial],
  space: Space,
  direction: StudyDirection,
  use_gradients: bool = False,
) -> FrozenTrial:
  """The trial to hand over: by posterior mean if noisy, else by score.

  Scores, of which there is at least one, are noisy where a known standard error
  is above zero. Never one with a worse score than trial 0 (of a search on the
  simplex, the last checkpoint alone), or that breaks a constraint, as it was
  observed. Where trial 0 breaks one itself its score is no bound, and where
  every trial does it is the one. Of equals the first.
  """
  scored = [t for t in trials if score_of(t) is not None and lies_in(t, space)]
  observed = observations(scored, space, direction, use_gradients)
  assert observed is not None, "no trial has a score"
  # A stopped trial was beaten: it informs the others.
  kept_N = np.array(
    [t.state == TrialState.COMPLETE and is_feasible(t) for t in scored]
  )
  first = min(range(len(scored)), key=lambda i: scored[i].number)
  if not kept_N.any():
    return scored[first]
  merit_N = observed.values_N
  if np.any(observed.stderrs_N > 0):
    merit_N, _ = surrogate.posterior(
      observed, observed.points_NxD, groups=space.groups
    )
    if kept_N[first]:
      kept_N &= observed.values_N >= observed.values_N[first]
  return scored[int(np.argmax(np.where(kept_N, merit_N, -np.inf)))]
