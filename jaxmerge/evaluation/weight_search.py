"""The study that searches the weights of a merge.

K checkpoints, G groups of parameters with weights of their own.
"""

import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.space import simplices_of
from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.bayesopt.study.study import Ending, open_study, run_study
from jaxmerge.bayesopt.trials import GRADIENT
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.config_fields import identity
from jaxmerge.errors import InputError, check
from jaxmerge.evaluation.config import WeightsConfig
from jaxmerge.evaluation.merged_loss import MergedLoss
from jaxmerge.evaluation.objective import (
  WEIGHTS,
  Domain,
  Objective,
)
from jaxmerge.evaluation.score import Direction
from jaxmerge.evaluation.search_method import (
  DEFAULT_METHOD,
  SEARCH_METHODS,
  Findings,
  SearchMethod,
)
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.merging import weight_rules
from jaxmerge.merging.groups import layer_groups, one_group
from jaxmerge.merging.method import bands_of
from jaxmerge.simplex.bounds import Bounds, is_same, unit_from_weights

_STARTS = "starts"
_MEASURES = (GRADIENT,)


class WeightSearch(NamedTuple):
  """Decides which weights a search tries: `num_trials`, by a method.

  With `early_stop` it scores no further what the best trial so far beats beyond
  noise.
  """

  domain: Domain
  method: SearchMethod
  knobs: Any
  seed: int
  num_trials: int
  early_stop: bool = False

  @classmethod
  def of(
    cls, config: WeightsConfig, checkpoints: Sequence[Checkpoint]
  ) -> "WeightSearch":
    """The search of a config, among checkpoints by step."""
    steps = [checkpoint.metadata.step for checkpoint in checkpoints]
    tree, bands = abstract_params(checkpoints[-1].metadata), bands_of(config)
    groups = layer_groups(tree, bands) if bands else one_group(tree)
    return cls(
      Domain(steps, groups, Bounds(config.alpha, config.beta)),
      SEARCH_METHODS[config.search_method],
      config.method_knobs,
      config.seed,
      config.num_trials,
      config.early_stop,
    )

  @property
  def use_gradients(self) -> bool:
    """Says whether each trial tells the derivative by the weights."""
    wanted = self.method.measures(self.knobs)
    check(
      f"the search method {self.method.name!r} wants {name!r} measured, which "
      f"is none of {', '.join(_MEASURES)}"
      for name in wanted
      if name not in _MEASURES
    )
    return GRADIENT in wanted

  @property
  def identity(self) -> dict[str, Any]:
    """Tells it from others; studies of before there were methods go on."""
    name, knobs = self.method.name, identity(self.knobs).items()
    return {
      "seed": self.seed,
      **self.domain.bounds._asdict(),
      "groups": list(self.domain.groups.names_G),
      **{k: list(v) if isinstance(v, tuple) else v for k, v in knobs},
      **({"search_method": name} if name != DEFAULT_METHOD else {}),
    }

  @property
  def starts(self) -> list[list[float]]:
    """Points of the simplex to try before the method is asked.

    The last checkpoint alone is always the first. Weights that give it too
    little are moved towards it until they do not. Without duplicates, and
    never more than half of the budget.
    """
    bounds, count = self.domain.bounds, len(self.domain.steps)
    names = ("last", *self.method.starts(count, self.knobs))
    found: list[list[float]] = []
    for _, weights_K in weight_rules.starts(names, count):
      missing = bounds.alpha - weights_K[-1]
      part = missing / (1 - weights_K[-1]) if missing > 0 else 0.0
      moved = [(1 - part) * w for w in weights_K]
      moved[-1] += part
      unit_K = unit_from_weights(moved, bounds)
      if all(not is_same(unit_K, other) for other in found):
        found.append(unit_K)
    return found[: max(self.num_trials // 2, 1)]

  def findings(
    self, study: Study, trials: Sequence[FrozenTrial] | None = None
  ) -> Findings:
    """Tells the method of these trials; by default of all."""
    if trials is None:
      trials = ended(study, self.num_trials)
    space = simplices_of(self.domain.names_GxK, None)
    return Findings(trials, space, study.direction)


def open_weight_study(
  storage: str | os.PathLike[str],
  name: str,
  search: WeightSearch,
  *,
  identity: Mapping[str, Any],
  direction: Direction = "minimize",
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
    identity={**search.identity, **identity},
    num_trials=search.num_trials,
    direction=direction,
    described=described,
  )
  check_trials(study, search.domain)
  if _STARTS not in study.user_attrs:
    study.set_user_attr(_STARTS, search.starts)
  # Read back: of two searchers that create a study the later one decides.
  starts = study.user_attrs[_STARTS]
  space = simplices_of(search.domain.names_GxK, starts)
  study.sampler = search.method.sampler(space, search.seed, search.knobs)
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


def direction_of(study: Study) -> Direction:
  return "minimize" if study.direction.name == "MINIMIZE" else "maximize"


def run_weight_study(
  study: Study,
  merged: MergedLoss,
  search: WeightSearch,
  *,
  limits: Budget,
  on_trial: Callable[[FrozenTrial], None],
) -> Ending:
  """Runs what is left of the budget of a study from open_weight_study.

  `limits` and `on_trial` are as for run_study.

  Raises:
    InputError: the study is of scores of the other direction.
  """
  if merged.last.direction != direction_of(study):
    raise InputError(
      f"the study is to {direction_of(study)}, the evaluator's scores say "
      f"{merged.last.direction}"
    )

  def incumbent() -> dict[str, float] | None:
    best = search.findings(study).best_observed
    return best.params if best else None

  objective = Objective(
    merged,
    search.domain,
    search.use_gradients,
    incumbent if search.early_stop else None,
  )
  return run_study(
    study,
    objective,
    num_trials=search.num_trials,
    on_trial=on_trial,
    limits=limits,
    has_converged=lambda trials: search.method.has_converged(
      search.findings(study, trials), search.knobs
    ),
  )


class Choice(NamedTuple):
  """Recommended parameters, and the trial that had them, if one had."""

  params: dict[str, float]
  number: int | None


def choose(study: Study, search: WeightSearch) -> Choice | None:
  """Asks the method to recommend; None where no trial is scored."""
  found = search.findings(study)
  if found.best_observed is None:
    return None
  params = dict(search.method.recommend(found, search.knobs))
  numbers = (
    t.number
    for t in found.trials
    if t.state == TrialState.COMPLETE and t.params == params
  )
  return Choice(params, next(numbers, None))
