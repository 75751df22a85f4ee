"""GP-Hedge as an Optuna sampler, on the simplex or over float parameters.

D coordinates, J acquisitions, C candidates, N trials. A suggestion is a
function of the finished trials, the seed and the trial's number; all that the
portfolio remembers lies in the trials' own attributes.
"""

import math
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt import trials
from jaxmerge.bayesopt.asking import RecordingSampler
from jaxmerge.bayesopt.gp import surrogate
from jaxmerge.bayesopt.gp.acquisition import ACQUISITIONS, KAPPA, preference
from jaxmerge.bayesopt.space import Simplices, Space, simplices_of
from jaxmerge.errors import check

_DUPLICATE = 5e-4
_NUM_BOX_STARTS = 5


class GPHedgeSampler(RecordingSampler):
  """Gaussian process with a portfolio of acquisitions (GP-Hedge).

  Hoffman, Brochu and de Freitas, "Portfolio Allocation for Bayesian
  Optimization" (UAI 2011), Algorithm 2.

  With `simplex` the named parameters (each a float in [0, 1]) sum to 1, from
  trial 0 on; with groups of names, those of each group do. Without it, any
  float parameters are searched in their box. All other parameters are drawn at
  random, of which a warning tells once. Several objectives are refused.

  A trial's user attribute "stderr", if any, is the known standard error of its
  value. Failed and non-finite trials never reach the Gaussian process; pruned
  ones do with their user attribute "partial_value", an estimate of the whole;
  running ones, of other workers, count as observed at their posterior mean
  (kriging believer). No point is asked twice (|difference| < 5e-4).

  A trial that ends without what the process needs of it (a parameter of
  `simplex`, a usable gradient) raises InputError where its value is told.

  Args:
    seed: of every draw, together with the trial's number; None draws one,
      which the attribute `seed` tells.
    n_startup_trials: trials before the Gaussian process is asked; by default
      as many as there are starts, or 5 points of a Latin hypercube.
    acquisitions: the portfolio, of acquisition.ACQUISITIONS.
    simplex: names of the parameters that sum to 1, or groups of them.
    use_gradients: condition on derivatives too: a trial's user attribute
      "gradient" holds d value / d parameter by name, NaN where that is not
      known (on a simplex only differences between names matter),
      "gradient_stderr" the standard error of a slope along a direction of
      length one, 0 if not there. Both are set before the value is told.
    starts: points on the simplex of the first trials, alike in every group;
      by default each checkpoint alone (the vertices), last name first.
    negative: the parameters v of a group of K stand for the weights
      -1 + (K + 1) v in [-1, 2], so that none is above 3 / (K + 1).

  Raises:
    InputError: lists unknown or repeated acquisitions, no start trial, a
      negative seed, names given twice, starts that are not on the simplex.
  """

  def __init__(
    self,
    *,
    seed: int | None = None,
    n_startup_trials: int | None = None,
    acquisitions: Sequence[str] = ("ei", "pi", "ucb"),
    simplex: Sequence[str] | Sequence[Sequence[str]] | None = None,
    use_gradients: bool = False,
    starts: Sequence[Sequence[float]] | None = None,
    negative: bool = False,
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
    if seed is None:
      seed = secrets.randbelow(2**32)
    if seed < 0:
      problems.append(f"seed must be >= 0, got {seed}")
    if starts is not None and (simplex is None or not len(starts)):
      problems.append("starts are points on a simplex, one or more")
    if negative and simplex is None:
      problems.append("negative weights are those of a simplex")
    check(problems)
    space = None if simplex is None else simplices_of(simplex, starts, negative)
    default = len(space.starts_NxK) if space else _NUM_BOX_STARTS
    super().__init__(space, n_startup_trials or default, seed)
    self._acquisitions = tuple(acquisitions)
    self._use_gradients = use_gradients

  def space(self) -> Simplices | None:
    """The named parameters; None without `simplex`."""
    return self.simplex

  def after_trial(
    self,
    study: Study,
    trial: FrozenTrial,
    state: TrialState,
    values: Sequence[float] | None,
  ) -> None:
    """Refuses a scored trial that the process would leave out in silence."""
    if state == TrialState.COMPLETE:
      check(trials.problems(trial, self.simplex, self._use_gradients))
      others = study.get_trials(deepcopy=False)
      check(trials.constraint_problems(trial, others))

  def ask(
    self, study: Study, trial: FrozenTrial, space: Space
  ) -> dict[str, Any]:
    """The record of one suggestion: params, who asked, nominees, gains."""
    if not space.distributions():
      return {"asked_by": "explore", "params": {}}
    others = [
      t
      for t in study.get_trials(deepcopy=False)
      if t.number != trial.number and trials.lies_in(t, space)
    ]
    taken_NxD = [space.coordinates(t.params) for t in others]
    observed = trials.observations(
      others, space, study.direction, self._use_gradients
    )
    candidates_CxD = space.candidates(self.seed)
    rng = np.random.default_rng([self.seed, trial.number])
    if observed is None:
      order_C = rng.permutation(len(candidates_CxD))
      c = _first_free(candidates_CxD, order_C, taken_NxD, space, order_C[0])
      return {"asked_by": "explore", "params": space.params(candidates_CxD[c])}
    names = self._acquisitions
    previous = trials.latest_portfolio(others, trial.number, space, names)
    # Zeros, whose score is not used, before the first.
    zeros_JxD = np.zeros((len(names), candidates_CxD.shape[1]))
    nominees_JxD, gains_J = previous or (zeros_JxD, zeros_JxD[:, 0])
    found = surrogate.suggest(
      observed,
      nominees_JxD,
      candidates_CxD,
      acquisitions=names,
      groups=space.groups,
      reach=space.reach,
      # Its own stream: the portfolio's draw is the same without Thompson.
      rng=np.random.default_rng([self.seed, trial.number, 1]),
      margins=trials.margins(others, space, study.direction),
    )
    if previous is not None:
      gains_J = gains_J + found.rewards_J
    order_J = preference(gains_J, rng)
    j = _first_free(found.nominees_JxD, order_J, taken_NxD, space, None)
    if j is not None:
      name, point_D = names[j], found.nominees_JxD[j]
      mean, std = found.mean_J[j], found.std_J[j]
    else:
      ucb_C = found.mean_C + KAPPA * found.std_C
      # Behind all others, by its probability, what more likely breaks a
      # constraint than not.
      log_C = found.log_feasible_C
      likely_C = 0 * ucb_C if log_C is None else np.minimum(log_C, -math.log(2))
      order_C = np.lexsort([-ucb_C, -likely_C])
      c = _first_free(candidates_CxD, order_C, taken_NxD, space, order_C[0])
      name, point_D = "explore", candidates_CxD[c]
      mean, std = found.mean_C[c], found.std_C[c]
    return {
      "asked_by": name,
      "params": space.params(point_D),
      # In the units and the sign of the trial's own value.
      "predicted": {
        "mean": trials.sign_of(study.direction) * float(mean),
        "std": float(std),
        "noise_share": float(found.share),
      },
      "nominees": dict(zip(names, map(space.params, found.nominees_JxD))),
      "gains": dict(zip(names, map(float, gains_J))),
    }


def _first_free(
  points_CxD: np.ndarray,
  order_C: Iterable[int],
  taken_NxD: Sequence[np.ndarray],
  space: Space,
  otherwise: int | None,
) -> int | None:
  """The first of the points, in that order, that nobody has asked.

  A coarse grid (step) may have none left.
  """
  for index in order_C:
    # Judged after rounding to the parameters, which a step makes coarse.
    point_D = space.coordinates(space.params(points_CxD[index]))
    gaps_N = (np.max(np.abs(point_D - o_D)) for o_D in taken_NxD)
    if not any(gap < _DUPLICATE for gap in gaps_N):
      return index
  return otherwise
