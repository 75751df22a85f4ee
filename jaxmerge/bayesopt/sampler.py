"""GP-Hedge as an Optuna sampler, on the simplex or over float parameters.

D coordinates, J acquisitions, C candidates, N trials. A suggestion is a
function of the finished trials, the seed and the trial's number; all that the
portfolio remembers lies in the trials' own attributes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import RandomSampler
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial

from jaxmerge.bayesopt.asking import RecordingSampler
from jaxmerge.bayesopt.gp import hedge, surrogate
from jaxmerge.bayesopt.gp.acquisition import ACQUISITIONS, KAPPA
from jaxmerge.bayesopt.space import (
  Simplices,
  Space,
  box_of,
  from_unit,
  name_seed,
  simplices_of,
  stratum,
)
from jaxmerge.bayesopt.trials import (
  latest_record,
  lies_in,
  observations,
  sign_of,
)
from jaxmerge.errors import check

_DUPLICATE = 5e-4
_NUM_BOX_STARTS = 5


class GPHedgeSampler(RecordingSampler):
  """Gaussian process with a portfolio of acquisitions (GP-Hedge).

  Hoffman, Brochu and de Freitas, "Portfolio Allocation for Bayesian
  Optimization" (UAI 2011), Algorithm 2.

  With `simplex` the named parameters (each a float in [0, 1]) sum to 1, from
  trial 0 on; with groups of names, those of each group do. Without it, any
  float parameters are searched in their box; integers and categories are drawn
  at random. Several objectives are refused.

  A trial's user attribute "stderr", if any, is the known standard error of its
  value. Failed and non-finite trials never reach the Gaussian process; pruned
  ones do with their user attribute "partial_value", an estimate of the whole;
  running ones, of other workers, count as observed at their posterior mean
  (kriging believer). No point is asked twice (|difference| < 5e-4).

  Args:
    seed: of every draw, together with the trial's number.
    n_startup_trials: trials before the Gaussian process is asked; by default
      as many as there are starts, or 5 points of a Latin hypercube.
    acquisitions: the portfolio, of acquisition.ACQUISITIONS.
    simplex: names of the parameters that sum to 1, or groups of them.
    use_gradients: condition on derivatives too: a trial's user attribute
      "gradient" holds d value / d parameter by name (on a simplex only
      differences between names matter), "gradient_stderr" the standard error
      of a slope along a direction of length one, 0 if not there.
    starts: points on the simplex of the first trials, alike in every group;
      by default the vertices, last name first.

  Raises:
    InputError: lists unknown or repeated acquisitions, no start trial, a
      negative seed, names given twice, starts that are not on the simplex.
  """

  def __init__(
    self,
    *,
    seed: int,
    n_startup_trials: int | None = None,
    acquisitions: Sequence[str] = ("ei", "pi", "ucb"),
    simplex: Sequence[str] | Sequence[Sequence[str]] | None = None,
    use_gradients: bool = False,
    starts: Sequence[Sequence[float]] | None = None,
  ):
    problems = []
    known = set(acquisitions) & set(ACQUISITIONS)
    if not acquisitions or len(known) < len(acquisitions):
      problems.append(
        f"acquisitions must be different ones of"
        f" {', '.join(ACQUISITIONS)}; got {list(acquisitions)}"
      )
    if n_startup_trials is not None and n_startup_trials < 1:
      problems.append(f"n_startup_trials must be >= 1, got {n_startup_trials}")
    if seed < 0:
      problems.append(f"seed must be >= 0, got {seed}")
    if starts is not None and (not simplex or not len(starts)):
      problems.append("starts are points on a simplex, one or more")
    check(problems)
    self._seed = seed
    self._acquisitions = tuple(acquisitions)
    self._use_gradients = use_gradients
    self._simplex = simplices_of(simplex, starts) if simplex else None
    self._num_startup = n_startup_trials or (
      len(self._simplex.starts_NxK) if self._simplex else _NUM_BOX_STARTS
    )

  def space(self) -> Simplices | None:
    """The named parameters; None without `simplex`."""
    return self._simplex

  def infer_relative_search_space(
    self, study: Study, trial: FrozenTrial
  ) -> dict[str, BaseDistribution]:
    _check_one_objective(study)
    if self._simplex is not None:
      return self._simplex.distributions()
    trials = study.get_trials(deepcopy=False)
    return box_of(intersection_search_space(trials)).distributions()

  def sample_independent(
    self,
    study: Study,
    trial: FrozenTrial,
    param_name: str,
    param_distribution: BaseDistribution,
  ) -> Any:
    _check_one_objective(study)
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

  def ask(
    self,
    study: Study,
    trial: FrozenTrial,
    search_space: dict[str, BaseDistribution],
  ) -> dict[str, Any]:
    """The record of one suggestion: params, who asked, nominees, gains."""
    space = self._simplex or box_of(search_space)
    if trial.number < self._num_startup:
      point_D = space.start(trial.number, self._num_startup, self._seed)
      return {"asked_by": "start", "params": space.params(point_D)}
    if not space.distributions():
      return {"asked_by": "explore", "params": {}}
    others = [
      t
      for t in study.get_trials(deepcopy=False)
      if t.number != trial.number and lies_in(t, space)
    ]
    taken_NxD = [space.coordinates(t.params) for t in others]
    observed = observations(others, space, study.direction, self._use_gradients)
    candidates_CxD = space.candidates(self._seed)
    rng = np.random.default_rng([self._seed, trial.number])
    if observed is None:
      order_C = rng.permutation(len(candidates_CxD))
      chosen = _first_free(candidates_CxD, order_C, taken_NxD, space)
      params = space.params(candidates_CxD[chosen])
      return {"asked_by": "explore", "params": params}
    names = self._acquisitions
    previous = latest_record(others, trial.number, space, names)
    # Zeros, whose score is not used, before the first.
    nominees_JxD = np.zeros((len(names), candidates_CxD.shape[1]))
    if previous is not None:
      nominees_JxD = np.stack(
        [space.coordinates(previous["nominees"][a]) for a in names]
      )
    suggestion = surrogate.suggest(
      observed,
      nominees_JxD,
      candidates_CxD,
      acquisitions=names,
      groups=space.groups,
      # Its own stream: the portfolio's draw is the same without Thompson.
      rng=np.random.default_rng([self._seed, trial.number, 1]),
    )
    gains_J = np.zeros(len(names))
    if previous is not None:
      gains_J = suggestion.rewards_J + [previous["gains"][a] for a in names]
    order = hedge.preference(gains_J, rng)
    found = self._choose(
      suggestion, sign_of(study.direction), order, taken_NxD, space
    )
    return {**found, "gains": dict(zip(names, map(float, gains_J)))}

  def _choose(
    self,
    suggestion: surrogate.Suggestion,
    sign: float,
    order: Sequence[int],
    taken_NxD: Sequence[np.ndarray],
    space: Space,
  ) -> dict[str, Any]:
    """The first nominee in an order that is not taken, or a candidate."""
    nominees = [space.params(point_D) for point_D in suggestion.nominees_JxD]
    free = (j for j in order if not _is_taken(nominees[j], taken_NxD, space))
    j = next(free, None)
    if j is not None:
      name, params = self._acquisitions[j], nominees[j]
      mean, std = suggestion.mean_J[j], suggestion.std_J[j]
    else:
      mean_C, std_C = suggestion.mean_C, suggestion.std_C
      order_C = np.argsort(-(mean_C + KAPPA * std_C), kind="stable")
      candidates_CxD = space.candidates(self._seed)
      c = _first_free(candidates_CxD, order_C, taken_NxD, space)
      name, params = "explore", space.params(candidates_CxD[c])
      mean, std = mean_C[c], std_C[c]
    return {
      "asked_by": name,
      "params": params,
      # In the units and the sign of the trial's own value.
      "predicted": {
        "mean": sign * float(mean),
        "std": float(std),
        "noise_share": float(suggestion.share),
      },
      "nominees": dict(zip(self._acquisitions, nominees, strict=True)),
    }


def _check_one_objective(study: Study) -> None:
  if len(study.directions) > 1:
    raise ValueError(
      "If the study is being used for multi-objective optimization, "
      "GPHedgeSampler cannot be used."
    )


def _is_taken(
  params: Mapping[str, float], taken_NxD: Sequence[np.ndarray], space: Space
) -> bool:
  # Judged after rounding to the parameters, which a step makes coarse.
  point_D = space.coordinates(params)
  return any(np.max(np.abs(point_D - o_D)) < _DUPLICATE for o_D in taken_NxD)


def _first_free(
  points_CxD: np.ndarray,
  order_C: np.ndarray,
  taken_NxD: Sequence[np.ndarray],
  space: Space,
) -> int:
  """The first of the points, in that order, that nobody has asked.

  A coarse grid (step) may have none left: then the first of all.
  """
  for index in order_C:
    if not _is_taken(space.params(points_CxD[index]), taken_NxD, space):
      return int(index)
  return int(order_C[0])
