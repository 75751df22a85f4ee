"""The study that searches the weights of a merge.

K checkpoints, G groups of parameters with weights of their own.
"""

import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.limits import Limits
from jaxmerge.bayesopt.padding import Observations
from jaxmerge.bayesopt.reach import is_same, unit_from_weights
from jaxmerge.bayesopt.sampler import GPHedgeSampler
from jaxmerge.bayesopt.space import simplices_of
from jaxmerge.bayesopt.study import Ending, open_study, run_study
from jaxmerge.bayesopt.trials import is_scored, observations, recommended
from jaxmerge.errors import check
from jaxmerge.evaluation.objective import (
  WEIGHTS,
  Domain,
  MergedLoss,
  make_objective,
)
from jaxmerge.merging import weight_rules

_STARTS = "starts"


def unit_starts(
  names: Sequence[str], domain: Domain, budget: int, use_gradients: bool
) -> list[list[float]]:
  """Points of the simplex to try before the process is asked.

  The last checkpoint alone is always the first. Weights that give it too
  little are moved towards it until they do not. Without duplicates, and never
  more than half of the budget.

  Args:
    names: as for weight_rules.starts; none: its default order.
    domain: of the search.
    budget: evaluations in all.
    use_gradients: each start tells its slopes too, so that few are needed.

  Raises:
    InputError: an unknown name.
  """
  count = len(domain.steps)
  order = names or weight_rules.default_starts(count, use_gradients)
  found: list[list[float]] = []
  for _, weights_K in weight_rules.starts(("last", *order), count):
    missing = domain.reach.alpha - weights_K[-1]
    part = missing / (1 - weights_K[-1]) if missing > 0 else 0.0
    moved = [(1 - part) * w for w in weights_K]
    moved[-1] += part
    unit_K = unit_from_weights(moved, domain.reach)
    if all(not is_same(unit_K, other) for other in found):
      found.append(unit_K)
  return found[: max(budget // 2, 1)]


def fingerprint_of(
  domain: Domain,
  *,
  seed: int,
  acquisitions: Sequence[str],
  use_gradients: bool,
  starts: Sequence[str],
) -> dict[str, Any]:
  """What of a search of weights decides which it tries."""
  return {
    "seed": seed,
    "alpha": domain.reach.alpha,
    "beta": domain.reach.beta,
    "groups": list(domain.groups.names_G),
    "acquisitions": list(acquisitions),
    "use_gradients": use_gradients,
    "initial_weights": list(starts),
  }


def open_weight_study(
  storage: str | os.PathLike[str],
  name: str,
  domain: Domain,
  *,
  seed: int,
  acquisitions: Sequence[str],
  use_gradients: bool,
  starts: Sequence[str],
  num_trials: int,
  fingerprint: Mapping[str, Any],
  described: Mapping[str, str] = types.MappingProxyType({}),
) -> Study:
  """Opens or goes on with a study of merge weights; see open_study.

  The first trials are decided when the study is created: a larger budget later
  adds none, and the trials so far are what they would have been.
  """
  study = open_study(
    storage,
    name,
    sampler=RandomSampler(),
    fingerprint={
      **fingerprint_of(
        domain,
        seed=seed,
        acquisitions=acquisitions,
        use_gradients=use_gradients,
        starts=starts,
      ),
      **fingerprint,
    },
    num_trials=num_trials,
    described=described,
  )
  check_trials(study, domain)
  if _STARTS not in study.user_attrs:
    study.set_user_attr(
      _STARTS, unit_starts(starts, domain, num_trials, use_gradients)
    )
  study.sampler = GPHedgeSampler(
    seed=seed,
    acquisitions=acquisitions,
    simplex=domain.names_GxK,
    use_gradients=use_gradients,
    # Read back: of two searchers that create a study the later one decides.
    starts=study.user_attrs[_STARTS],
  )
  return study


def check_trials(study: Study, domain: Domain) -> None:
  """Refuses a study of which parts have been lost.

  Raises:
    InputError: names finished trials that lack what every one has.
  """
  names = {name for row in domain.names_GxK for name in row}
  check(
    f"the study {study.study_name!r} is damaged: trial {trial.number} is "
    "finished and lacks its weights; restore it, or choose another name"
    for trial in study.get_trials(deepcopy=False)
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    and not (names <= trial.params.keys() and WEIGHTS in trial.user_attrs)
  )


def ended(study: Study, num_trials: int) -> list[FrozenTrial]:
  """The trials of the budget that have ended, scored or not, by number."""
  return [
    trial
    for trial in study.get_trials(deepcopy=False)
    if trial.number < num_trials and trial.state.is_finished()
  ]


def lowest(study: Study, num_trials: int) -> FrozenTrial | None:
  """The trial of the lowest observed loss so far; of equals the first."""
  scored = [
    trial
    for trial in ended(study, num_trials)
    if trial.state == TrialState.COMPLETE and is_scored(trial)
  ]
  return min(scored, key=lambda t: t.value or 0.0, default=None)


def run_weight_study(
  study: Study,
  merged: MergedLoss,
  domain: Domain,
  *,
  num_trials: int,
  limits: Limits,
  use_gradients: bool,
  early_stop: bool,
  on_trial: Callable[[FrozenTrial], None],
) -> Ending:
  """Runs what is left of the budget; see run_study.

  Args:
    study: from open_weight_study.
    merged: scores merges.
    domain: of the study.
    num_trials: the budget.
    limits: further ones.
    use_gradients: tell the process the loss's derivative too.
    early_stop: score no further what the best trial so far beats beyond noise.
    on_trial: called with each trial that this process finishes.
  """

  def incumbent() -> dict[str, float] | None:
    best = lowest(study, num_trials)
    return best.params if best else None

  objective = make_objective(
    merged,
    domain,
    use_gradients=use_gradients,
    incumbent=incumbent if early_stop else None,
  )
  return run_study(
    study, objective, num_trials=num_trials, on_trial=on_trial, limits=limits
  )


def told(
  study: Study,
  domain: Domain,
  trials: Sequence[FrozenTrial],
  use_gradients: bool,
) -> Observations:
  """What the process knows after these trials, of which one has a score."""
  space = simplices_of(domain.names_GxK, None)
  found = observations(trials, space, study.direction, use_gradients)
  assert found is not None, "no trial has a score"
  return found


def choose(
  study: Study, domain: Domain, num_trials: int, use_gradients: bool
) -> FrozenTrial | None:
  """The trial to hand over (trials.recommended); None where none is scored.

  Algorithm 1 of arXiv 2403.19390 returns the best observation; with noise
  that is the luckiest one, and the posterior mean decides instead.
  """
  trials = ended(study, num_trials)
  if lowest(study, num_trials) is None:
    return None
  space = simplices_of(domain.names_GxK, None)
  return recommended(trials, space, study.direction, use_gradients)
