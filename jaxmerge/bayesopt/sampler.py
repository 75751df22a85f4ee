"""GP-Hedge as an Optuna sampler, on the simplex or over float parameters.

D coordinates, J acquisitions, C candidates, N finished trials. A suggestion
is a function of the finished trials, the seed and the trial's number; all that
the portfolio remembers lies in the trials' own attributes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import intersection_search_space
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt import acquisition, hedge, surrogate
from jaxmerge.bayesopt.space import (
  Simplex,
  Space,
  box_of,
  from_unit,
  name_seed,
  simplex_of,
  stratum,
)
from jaxmerge.errors import check

ASKED = "gp_hedge:asked"
_DUPLICATE = 5e-4
_NUM_BOX_STARTS = 5
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def asked_by(trial: FrozenTrial) -> str:
  """Who asked a trial: "start", "ei", "pi", "ucb" or "explore".

  "start" also where the point was given and not asked (an enqueued trial).
  """
  record = trial.system_attrs.get(ASKED)
  return str(record["asked_by"]) if record else "start"


class GPHedgeSampler(BaseSampler):
  """Gaussian process with a portfolio of acquisitions (GP-Hedge).

  Hoffman, Brochu and de Freitas, "Portfolio Allocation for Bayesian
  Optimization" (UAI 2011), Algorithm 2.

  Trial 0 onwards, with `simplex`, the named parameters (each a float in
  [0, 1]) sum to 1 and the first trials are the vertices, last name first.
  Without it, any float parameters are searched in their box; integers and
  categories are drawn at random. Several objectives are refused.

  A trial's user attribute "stderr", if any, is the known standard error of its
  value. Failed, pruned and non-finite trials never reach the process, and no
  point is asked twice (|difference| < 5e-4).

  Args:
    seed: of every draw, together with the trial's number.
    n_startup_trials: trials before the process is asked; by default the K
      vertices of the simplex, or 5 points of a Latin hypercube.
    acquisitions: the portfolio, of "ei", "pi" and "ucb".
    simplex: names of the parameters that sum to 1.

  Raises:
    InputError: an unknown or repeated acquisition, no start trial, a negative
      seed, fewer than two names or a name given twice.
  """

  def __init__(
    self,
    *,
    seed: int,
    n_startup_trials: int | None = None,
    acquisitions: Sequence[str] = ("ei", "pi", "ucb"),
    simplex: Sequence[str] | None = None,
  ):
    problems = []
    unknown = [a for a in acquisitions if a not in acquisition.UTILITIES]
    if (
      unknown or not acquisitions or len(set(acquisitions)) < len(acquisitions)
    ):
      problems.append(
        f"acquisitions must be different ones of"
        f" {', '.join(acquisition.UTILITIES)}; got {list(acquisitions)}"
      )
    if n_startup_trials is not None and n_startup_trials < 1:
      problems.append(f"n_startup_trials must be >= 1, got {n_startup_trials}")
    if seed < 0:
      problems.append(f"seed must be >= 0, got {seed}")
    check(problems)
    self._seed = seed
    self._acquisitions = tuple(acquisitions)
    self._simplex: Simplex | None = simplex_of(simplex) if simplex else None
    if n_startup_trials is None:
      n_startup_trials = len(simplex) if simplex else _NUM_BOX_STARTS
    self._num_startup = n_startup_trials

  def infer_relative_search_space(
    self, study: Study, trial: FrozenTrial
  ) -> dict[str, BaseDistribution]:
    self._raise_error_if_multi_objective(study)
    if self._simplex is not None:
      return self._simplex.distributions()
    trials = study.get_trials(deepcopy=False)
    return box_of(intersection_search_space(trials)).distributions()

  def sample_relative(
    self,
    study: Study,
    trial: FrozenTrial,
    search_space: dict[str, BaseDistribution],
  ) -> dict[str, Any]:
    record = trial.system_attrs.get(ASKED)
    # A trial that a dead process left behind keeps the point it was given.
    if record is None or set(record["params"]) != set(search_space):
      space = self._simplex or box_of(search_space)
      record = self._ask(study, trial, space)
      study._storage.set_trial_system_attr(trial._trial_id, ASKED, record)
    return dict(record["params"])

  def sample_independent(
    self,
    study: Study,
    trial: FrozenTrial,
    param_name: str,
    param_distribution: BaseDistribution,
  ) -> Any:
    self._raise_error_if_multi_objective(study)
    if (
      isinstance(param_distribution, FloatDistribution)
      and trial.number < self._num_startup
    ):
      unit = stratum(param_name, trial.number, self._num_startup, self._seed)
      return from_unit(unit, param_distribution)
    rng = np.random.default_rng(
      [self._seed, trial.number, name_seed(param_name)]
    )
    drawing = RandomSampler(seed=int(rng.integers(2**32)))
    return drawing.sample_independent(
      study, trial, param_name, param_distribution
    )

  def _ask(
    self, study: Study, trial: FrozenTrial, space: Space
  ) -> dict[str, Any]:
    """The record of one suggestion: params, who asked, nominees, gains."""
    if trial.number < self._num_startup:
      names = space.distributions()
      if not names:
        return {"asked_by": "start", "params": {}}
      point_D = space.start(trial.number, self._num_startup, self._seed)
      return {"asked_by": "start", "params": space.params(point_D)}
    if not space.distributions():
      return {"asked_by": "explore", "params": {}}
    others = [
      t
      for t in study.get_trials(deepcopy=False)
      if t.number != trial.number and _lies_in(t, space)
    ]
    taken_NxD = [space.coordinates(t.params) for t in others]
    observations = _observations(study, others, space)
    candidates_CxD = space.candidates(self._seed)
    rng = np.random.default_rng([self._seed, trial.number])
    if observations is None:
      order_C = rng.permutation(len(candidates_CxD))
      params = _first_free(candidates_CxD[order_C], taken_NxD, space)
      return {
        "asked_by": "explore",
        "params": params or space.params(candidates_CxD[order_C[0]]),
      }
    previous = _latest_record(others, trial.number, space, self._acquisitions)
    suggestion = surrogate.suggest(
      observations,
      self._previous_nominees(previous, space),
      candidates_CxD,
      acquisitions=self._acquisitions,
      on_simplex=space.on_simplex,
    )
    gains_J = np.zeros(len(self._acquisitions))
    if previous is not None:
      gains_J = hedge.updated_gains(
        np.array([previous["gains"][a] for a in self._acquisitions]),
        suggestion.rewards_J,
      )
    return self._choose(suggestion, gains_J, taken_NxD, space, rng)

  def _previous_nominees(
    self, previous: Mapping[str, Any] | None, space: Space
  ) -> np.ndarray:
    """Last nominees (JxD); zeros, whose score is not used, before the first."""
    if previous is None:
      return np.zeros((len(self._acquisitions), len(space.distributions())))
    return np.stack(
      [space.coordinates(previous["nominees"][a]) for a in self._acquisitions]
    )

  def _choose(
    self,
    suggestion: surrogate.Suggestion,
    gains_J: np.ndarray,
    taken_NxD: Sequence[np.ndarray],
    space: Space,
    rng: np.random.Generator,
  ) -> dict[str, Any]:
    nominees = [space.params(point_D) for point_D in suggestion.nominees_JxD]
    record = {
      "nominees": dict(zip(self._acquisitions, nominees, strict=True)),
      "gains": dict(zip(self._acquisitions, map(float, gains_J), strict=True)),
    }
    for j in hedge.preference(gains_J, rng):
      if not _is_taken(nominees[j], taken_NxD, space):
        asked = self._acquisitions[j]
        return {"asked_by": asked, "params": nominees[j], **record}
    order_C = np.argsort(-suggestion.std_C, kind="stable")
    candidates_CxD = space.candidates(self._seed)[order_C]
    params = _first_free(candidates_CxD, taken_NxD, space)
    # A coarse grid (step) may have no point left: then the least known one.
    params = params or space.params(candidates_CxD[0])
    return {"asked_by": "explore", "params": params, **record}


def _lies_in(trial: FrozenTrial, space: Space) -> bool:
  """Whether a trial has a value, in range, for every parameter of a space."""
  return all(
    name in trial.params
    and trial.distributions[name] == distribution
    and math.isfinite(trial.params[name])
    for name, distribution in space.distributions().items()
  )


def _observations(
  study: Study, trials: Iterable[FrozenTrial], space: Space
) -> surrogate.Observations | None:
  """Finite scores of complete trials in maximisation sign, None if none."""
  sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
  usable = [
    t
    for t in trials
    if t.state == TrialState.COMPLETE
    and t.value is not None
    and math.isfinite(t.value)
    and math.isfinite(_stderr(t))
  ]
  if not usable:
    return None
  return surrogate.Observations(
    np.stack([space.coordinates(t.params) for t in usable]),
    np.array([sign * t.value for t in usable if t.value is not None]),
    np.array([_stderr(t) for t in usable]),
  )


def _stderr(trial: FrozenTrial) -> float:
  """Known standard error of a trial's value, 0 where it is not known."""
  return abs(float(trial.user_attrs.get("stderr", 0.0)))


def _latest_record(
  trials: Iterable[FrozenTrial],
  number: int,
  space: Space,
  acquisitions: Sequence[str],
) -> Mapping[str, Any] | None:
  """What the last finished trial before this one left of the portfolio."""
  earlier = [t for t in trials if t.number < number and t.state in _FINISHED]
  for trial in sorted(earlier, key=lambda t: t.number, reverse=True):
    record = trial.system_attrs.get(ASKED, {})
    nominees = record.get("nominees", {})
    if set(nominees) == set(acquisitions) and all(
      set(nominee) == set(space.distributions())
      for nominee in nominees.values()
    ):
      return record
  return None


def _is_taken(
  params: Mapping[str, float], taken_NxD: Sequence[np.ndarray], space: Space
) -> bool:
  # Judged after rounding to the parameters, which a step makes coarse.
  point_D = space.coordinates(params)
  return any(
    float(np.max(np.abs(point_D - other_D))) < _DUPLICATE
    for other_D in taken_NxD
  )


def _first_free(
  points_CxD: np.ndarray, taken_NxD: Sequence[np.ndarray], space: Space
) -> dict[str, float] | None:
  for point_D in points_CxD:
    params = space.params(point_D)
    if not _is_taken(params, taken_NxD, space):
      return params
  return None
