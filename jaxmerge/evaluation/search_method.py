"""Search methods: their records, and the findings that one is told.

K checkpoints, G groups of parameters with weights of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.space import Simplices
from jaxmerge.bayesopt.trials import is_feasible, score_of, sign_of
from jaxmerge.evaluation.domain import Domain
from jaxmerge.registry import Registry

DEFAULT_METHOD = "gp_hedge"


# What a trial may measure beside its score, whole and by document.
DOCUMENT_GRADIENTS = "document_gradients"
CURVATURE = "curvature"


class Findings(NamedTuple):
  """All that a method is told of a search.

  Attributes:
    trials: that have ended, by number: complete, failed or pruned.
    space: of their parameters.
    direction: of their scores.
    domain: maps parameters to weights.
    folder: of what trials have measured and the study does not hold itself.
  """

  trials: Sequence[FrozenTrial]
  space: Simplices
  direction: StudyDirection
  domain: Domain
  folder: epath.Path | None = None

  @property
  def best_observed(self) -> FrozenTrial | None:
    """The trial of the best observed score so far; of equals the first.

    Of those that keep to all constraints; if none does, the first of all, which
    is the last checkpoint alone.
    """
    scored = self._scored
    kept = [trial for trial in scored if is_feasible(trial)]
    sign = sign_of(self.direction)
    first = next(iter(scored), None)
    return max(kept, key=lambda t: sign * (t.value or 0.0), default=first)

  @property
  def has_feasible(self) -> bool:
    """Says whether a trial with a score keeps to all constraints."""
    return any(map(is_feasible, self._scored))

  @property
  def _scored(self) -> list[FrozenTrial]:
    return [
      trial
      for trial in self.trials
      if trial.state == TrialState.COMPLETE and score_of(trial) is not None
    ]


class Tried(NamedTuple):
  """A trial whose score is known and which has not ended.

  Attributes:
    number, params, value: of it.
    gradient_passes: forward passes that gradients by document take there.
  """

  number: int
  params: Mapping[str, float]
  value: float
  gradient_passes: float


class Task(NamedTuple):
  """A search before it begins, as far as its price depends on it.

  Attributes:
    checkpoints, groups: K and G.
    sequences: scored in a trial.
    num_trials: at most.
    on_devices: the trees are there, and not read for every merge.
  """

  checkpoints: int
  groups: int
  sequences: int
  num_trials: int
  on_devices: bool = True


class Expense(NamedTuple):
  """An expected price: forward passes of all trials, and words on it."""

  passes: float
  told: str = ""


def _both(found: Findings, tried: Tried, knobs: Any) -> Sequence[str]:
  del found, tried, knobs
  return DOCUMENT_GRADIENTS, CURVATURE


def _one_pass_each(task: Task, knobs: Any) -> Expense:
  del knobs
  return Expense(task.num_trials)


def _recommend_best(found: Findings, knobs: Any) -> Mapping[str, float]:
  del knobs
  assert found.best_observed is not None
  return found.best_observed.params


class SearchMethod(NamedTuple):
  """A way to choose weights.

  Trial 0 is the last checkpoint alone, whatever the method.

  Attributes:
    name: in a config, and of its row in a report.
    title: in a plan.
    summary: one line, with the reference.
    knobs: a frozen dataclass of its keys in a search's config; every function
      here gets one.
    sampler: from Findings without trials, whose space has the first trials,
      the seed and the knobs an Optuna sampler that asks every trial
      (bayesopt.asking).
    starts: from K and the knobs names of weight rules to begin with, behind
      the last checkpoint.
    measures: what trials tell besides their score: "gradient", or
      "document_gradients" and "curvature" (evaluation.measurements).
    measures_at: what of the latter two a trial measures, of the Findings
      before it and of the trial itself, once it has a score; by default both.
    asking_seconds: of a suggestion, expected of the last of N trials with D
      parameters in G groups.
    is_sequential: each trial depends on all before it: several searchers wait
      for each other.
    expense: expected of all trials.
    has_converged: says after each finished trial whether the trials that wait
      are to stay so; once it has, it must not change its mind.
    recommend: the parameters to merge with, be they of a trial or not; there
      is a trial with a score.
    has_posterior: the report is to show a Gaussian process after the trials.
    figures: of its own, PNGs by name, from the report's FinishedSearch and
      Results.
  """

  name: str
  title: str
  summary: str
  knobs: type
  sampler: Callable[[Findings, int, Any], BaseSampler]
  starts: Callable[[int, Any], Sequence[str]] = lambda count, knobs: ()
  measures: Callable[[Any], Sequence[str]] = lambda knobs: ()
  measures_at: Callable[[Findings, Tried, Any], Sequence[str]] = _both
  asking_seconds: Callable[[int, int, int, Any], float] = lambda *_: 0.0
  is_sequential: bool = False
  expense: Callable[[Task, Any], Expense] = _one_pass_each
  has_converged: Callable[[Findings, Any], bool] = lambda found, knobs: False
  recommend: Callable[[Findings, Any], Mapping[str, float]] = _recommend_best
  has_posterior: bool = False
  figures: Callable[..., Mapping[str, bytes]] = lambda search, results: {}


SEARCH_METHODS: Registry[SearchMethod] = Registry(
  "search method", "jaxmerge.evaluation.search_methods"
)
