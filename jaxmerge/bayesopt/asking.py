"""Samplers that keep with a trial what it was asked, and by whom.

D coordinates.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from jaxmerge.bayesopt.space import Simplices
from jaxmerge.bayesopt.study.optuna_adapter import id_of, storage_of
from jaxmerge.bayesopt.trials import ASKED


def kept(
  study: Study,
  trial: FrozenTrial,
  search_space: Mapping[str, BaseDistribution],
  ask: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
  """The parameters of a trial; `ask` gives the record {asked_by, params}.

  A trial that a dead process left behind keeps the point that it was given.
  """
  record = trial.system_attrs.get(ASKED)
  if record is None or set(record["params"]) != set(search_space):
    record = ask()
    storage_of(study).set_trial_system_attr(id_of(trial), ASKED, record)
  return dict(record["params"])


class SimplexSampler(BaseSampler):
  """Asks the starts of a space, then what a function says.

  Args:
    space: of the points.
    name: of who asks, in reports.
    point: the coordinates (D) of a trial, from the study so far; a function of
      its finished trials and the trial's number, or a search that was killed
      will not equal one that was not.
  """

  def __init__(
    self,
    space: Simplices,
    name: str,
    point: Callable[[Study, FrozenTrial], np.ndarray],
  ):
    self._space = space
    self._name = name
    self._point = point

  def infer_relative_search_space(
    self, study: Study, trial: FrozenTrial
  ) -> dict[str, BaseDistribution]:
    return self._space.distributions()

  def sample_relative(
    self,
    study: Study,
    trial: FrozenTrial,
    search_space: dict[str, BaseDistribution],
  ) -> dict[str, Any]:
    def ask() -> dict[str, Any]:
      starts = len(self._space.starts_NxK)
      if trial.number < starts:
        name, point_D = "start", self._space.start(trial.number, starts, 0)
      else:
        name, point_D = self._name, self._point(study, trial)
      return {"asked_by": name, "params": self._space.params(point_D)}

    return kept(study, trial, search_space, ask)

  def sample_independent(
    self,
    study: Study,
    trial: FrozenTrial,
    param_name: str,
    param_distribution: BaseDistribution,
  ) -> Any:
    raise ValueError(f"{param_name} is no coordinate of the simplex")
