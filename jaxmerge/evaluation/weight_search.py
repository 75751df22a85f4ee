"""The study that searches the weights of a merge.

K checkpoints, G groups of parameters with weights of their own.
"""

import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.study.optuna_adapter import read_trials
from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.bayesopt.study.study import Ending, open_study, run_study
from jaxmerge.bayesopt.trials import GRADIENT
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.config_fields import identity
from jaxmerge.errors import InputError, check
from jaxmerge.evaluation import solvers
from jaxmerge.evaluation.checkpoint_scores import Limits
from jaxmerge.evaluation.config import WeightsConfig
from jaxmerge.evaluation.domain import Domain, groups_of_models
from jaxmerge.evaluation.evaluator import EvaluatorRecord
from jaxmerge.evaluation.measurements import Measurer
from jaxmerge.evaluation.merged_loss import MergedLoss
from jaxmerge.evaluation.objective import WEIGHTS, Objective
from jaxmerge.evaluation.score import Direction
from jaxmerge.evaluation.search_method import (
  CURVATURE,
  DEFAULT_METHOD,
  DOCUMENT_GRADIENTS,
  Findings,
  SearchMethod,
)
from jaxmerge.merging import weight_rules
from jaxmerge.simplex.bounds import is_same, unit_from_weights

_STARTS = "starts"
_MEASURES = (GRADIENT, DOCUMENT_GRADIENTS, CURVATURE)


class WeightSearch(NamedTuple):
  """Decides which weights a search tries: `num_trials`, by a method.

  With `early_stop` it scores no further what the best trial so far beats beyond
  noise.

  Attributes:
    folder: of what trials measure and the study does not hold itself.
    why: the method was chosen, where the config left it open.
  """

  domain: Domain
  method: SearchMethod
  knobs: Any
  seed: int
  num_trials: int
  early_stop: bool = False
  folder: epath.Path | None = None
  why: str = ""

  @classmethod
  def of(
    cls,
    config: WeightsConfig,
    checkpoints: Sequence[Checkpoint],
    evaluator: EvaluatorRecord,
    folder: epath.Path,
  ) -> "WeightSearch":
    """The search of a config, among checkpoints by step."""
    steps = [checkpoint.metadata.step for checkpoint in checkpoints]
    groups, coarser = groups_of_models(checkpoints, config.layer_groups)
    solver = solvers.choose(
      config.solver,
      config.solver_knobs,
      evaluator,
      has_groups=len(groups.names_G) > 1,
      count=len(steps),
    )
    return cls(
      Domain(steps, groups, config.bounds, coarser),
      solver.method,
      solver.knobs,
      config.seed,
      config.num_trials,
      config.early_stop,
      folder,
      solver.why,
    )

  @property
  def measures(self) -> Sequence[str]:
    """All that trials may measure beside their score."""
    wanted = self.method.measures(self.knobs)
    check(
      f"the search method {self.method.name!r} wants {name!r} measured, which "
      f"is none of {', '.join(_MEASURES)}"
      for name in wanted
      if name not in _MEASURES
    )
    return wanted

  @property
  def use_gradients(self) -> bool:
    """Says whether each trial tells the derivative by the weights."""
    return GRADIENT in self.measures

  @property
  def use_curvature(self) -> bool:
    """Says whether a trial may measure derivatives by document."""
    return DOCUMENT_GRADIENTS in self.measures

  @property
  def identity(self) -> dict[str, Any]:
    """Tells it from others; studies of before there were methods go on."""
    name, knobs = self.method.name, identity(self.knobs).items()
    bounds = self.domain.bounds
    return {
      "seed": self.seed,
      "alpha": bounds.alpha,
      "beta": bounds.beta,
      **({"negative": True} if bounds.negative else {}),
      "groups": list(self.domain.groups.names_G),
      **{k: list(v) if isinstance(v, tuple) else v for k, v in knobs},
      **({"solver": name} if name != DEFAULT_METHOD else {}),
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
      unit_K = unit_from_weights(self.domain.moved_within(weights_K), bounds)
      if all(not is_same(unit_K, other) for other in found):
        found.append(unit_K)
    return found[: max(self.num_trials // 2, 1)]

  def findings(
    self, study: Study, trials: Sequence[FrozenTrial] | None = None
  ) -> Findings:
    """Tells the method of these trials; by default of all."""
    if trials is None:
      trials = ended(study, self.num_trials)
    space, domain = self.domain.space(), self.domain
    return Findings(trials, space, study.direction, domain, self.folder)


def open_weight_study(
  storage: str | os.PathLike[str] | None,
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
  space = search.domain.space(starts)
  found = search.findings(study, ())._replace(space=space)
  study.sampler = search.method.sampler(found, search.seed, search.knobs)
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
  task_limits: Limits | None = None,
) -> Ending:
  """Runs what is left of the budget of a study from open_weight_study.

  `limits` and `on_trial` are as for run_study, `task_limits` as for Objective.

  Raises:
    InputError: the study is of scores of the other direction.
  """
  if merged.last.direction != direction_of(study):
    raise InputError(
      f"the study is to {direction_of(study)}, the evaluator's scores say "
      f"{merged.last.direction}"
    )

  def incumbent() -> dict[str, float] | None:
    found = search.findings(study)
    # Of a trial that breaks a limit none is beaten.
    best = found.best_observed if found.has_feasible else None
    return best.params if best else None

  objective = Objective(
    merged,
    search.domain,
    search.use_gradients,
    incumbent if search.early_stop else None,
    _measurer(study, search) if search.use_curvature else None,
    task_limits,
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
    is_sequential=search.method.is_sequential,
  )


def _measurer(study: Study, search: WeightSearch) -> Measurer:
  method = search.method
  return Measurer(
    lambda tried: method.measures_at(
      search.findings(study), tried, search.knobs
    ),
    lambda number: read_trials(study)[number].user_attrs,
    search.domain.weights,
    search.folder,
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
