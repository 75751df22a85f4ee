"""Samplers that keep with a trial what it was asked, and by whom."""

from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from jaxmerge.bayesopt.space import Simplices
from jaxmerge.bayesopt.study.optuna_adapter import id_of, storage_of
from jaxmerge.bayesopt.trials import ASKED


class RecordingSampler(BaseSampler):
  """Keeps a trial's record {asked_by, params} with it.

  A trial that a dead process left behind keeps the point that it was given.
  """

  def ask(
    self,
    study: Study,
    trial: FrozenTrial,
    search_space: dict[str, BaseDistribution],
  ) -> dict[str, Any]:
    """The record of a trial."""
    raise NotImplementedError

  def sample_relative(
    self,
    study: Study,
    trial: FrozenTrial,
    search_space: dict[str, BaseDistribution],
  ) -> dict[str, Any]:
    record = trial.system_attrs.get(ASKED)
    if record is None or set(record["params"]) != set(search_space):
      record = self.ask(study, trial, search_space)
      storage_of(study).set_trial_system_attr(id_of(trial), ASKED, record)
    return dict(record["params"])


class SimplexSampler(RecordingSampler):
  """Asks the starts of a space, then the points of a function.

  Args:
    space: of the points.
    name: of who asks, in reports.
    point: the coordinates of a trial, one a name, from the study so far; a
      function of its finished trials and the trial's number, or a search that
      was killed will not equal one that was not.
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

  def ask(
    self,
    study: Study,
    trial: FrozenTrial,
    search_space: dict[str, BaseDistribution],
  ) -> dict[str, Any]:
    starts = len(self._space.starts_NxK)
    if trial.number < starts:
      name, point_D = "start", self._space.start(trial.number, starts, 0)
    else:
      name, point_D = self._name, self._point(study, trial)
    return {"asked_by": name, "params": self._space.params(point_D)}

  def sample_independent(
    self,
    study: Study,
    trial: FrozenTrial,
    param_name: str,
    param_distribution: BaseDistribution,
  ) -> Any:
    raise ValueError(f"{param_name} is no coordinate of the simplex")
