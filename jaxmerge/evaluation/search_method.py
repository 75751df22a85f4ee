"""Search methods: their records, and the findings that one is told.

K checkpoints.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.space import Simplices
from jaxmerge.bayesopt.trials import score_of, sign_of
from jaxmerge.registry import Registry

DEFAULT_METHOD = "gp_hedge"


class Findings(NamedTuple):
  """The trials that have ended, by number: complete, failed or pruned."""

  trials: Sequence[FrozenTrial]
  space: Simplices
  direction: StudyDirection

  @property
  def best_observed(self) -> FrozenTrial | None:
    """The trial of the best observed score so far; of equals the first."""
    scored = [
      trial
      for trial in self.trials
      if trial.state == TrialState.COMPLETE and score_of(trial) is not None
    ]
    sign = sign_of(self.direction)
    return max(scored, key=lambda t: sign * (t.value or 0.0), default=None)


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
    sampler: from the space, whose starts are the first trials, the seed and
      the knobs an Optuna sampler that asks every trial (bayesopt.asking).
    starts: from K and the knobs names of weight rules to begin with, behind
      the last checkpoint.
    measures: what each trial tells besides its score: "gradient".
    asking_seconds: of a suggestion, expected of the last of N trials with D
      parameters in G groups.
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
  sampler: Callable[[Simplices, int, Any], BaseSampler]
  starts: Callable[[int, Any], Sequence[str]] = lambda count, knobs: ()
  measures: Callable[[Any], Sequence[str]] = lambda knobs: ()
  asking_seconds: Callable[[int, int, int, Any], float] = lambda *_: 0.0
  has_converged: Callable[[Findings, Any], bool] = lambda found, knobs: False
  recommend: Callable[[Findings, Any], Mapping[str, float]] = _recommend_best
  has_posterior: bool = False
  figures: Callable[..., Mapping[str, bytes]] = lambda search, results: {}


SEARCH_METHODS: Registry[SearchMethod] = Registry(
  "search method", "jaxmerge.evaluation.search_methods"
)
