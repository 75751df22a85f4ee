"""Samplers that keep with a trial what it was asked, and by whom."""

import abc
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial

from jaxmerge.bayesopt.space import (
  Distributions,
  Simplices,
  Space,
  box_of,
  from_unit,
  name_seed,
  stratum,
)
from jaxmerge.bayesopt.study.optuna_adapter import id_of, storage_of
from jaxmerge.bayesopt.trials import ASKED
from jaxmerge.errors import InputError

# Below Optuna's, whose handler and verbosity it shares.
_LOGGER = logging.getLogger("optuna.jaxmerge")


class RecordingSampler(BaseSampler):
  """All of an Optuna sampler but what it asks after the start.

  Keeps a trial's record {asked_by, params} with it: one that a dead process
  left behind keeps the point that it was given.

  Args:
    simplex: of the points; None: the box of a study's float parameters.
    num_startup: number of trials that start the search.
    seed: of their points.
  """

  def __init__(self, simplex: Simplices | None, num_startup: int, seed: int):
    self.simplex = simplex
    self._num_startup = num_startup
    self.seed = seed
    self._told: set[str] = set()

  @abc.abstractmethod
  def ask(
    self, study: Study, trial: FrozenTrial, space: Space
  ) -> dict[str, Any]:
    """The record of a trial that comes after the start."""

  def infer_relative_search_space(
    self, study: Study, trial: FrozenTrial
  ) -> Distributions:
    if len(study.directions) > 1:
      raise ValueError(
        "If the study is being used for multi-objective optimization, "
        f"{type(self).__name__} cannot be used."
      )
    if self.simplex is not None:
      return self.simplex.distributions()
    trials = study.get_trials(deepcopy=False)
    return box_of(intersection_search_space(trials)).distributions()

  def sample_relative(
    self, study: Study, trial: FrozenTrial, search_space: Distributions
  ) -> dict[str, Any]:
    record = trial.system_attrs.get(ASKED)
    if record is None or set(record["params"]) != set(search_space):
      space = self.simplex or box_of(search_space)
      if trial.number < self._num_startup:
        point_D = space.start(trial.number, self._num_startup, self.seed)
        record = {"asked_by": "start", "params": space.params(point_D)}
      else:
        record = self.ask(study, trial, space)
      storage_of(study).set_trial_system_attr(id_of(trial), ASKED, record)
    return dict(record["params"])

  def sample_independent(
    self,
    study: Study,
    trial: FrozenTrial,
    param_name: str,
    param_distribution: BaseDistribution,
  ) -> Any:
    self._tell_of(param_name, param_distribution)
    if (
      isinstance(param_distribution, FloatDistribution)
      and trial.number < self._num_startup
    ):
      unit = stratum(param_name, trial.number, self._num_startup, self.seed)
      return from_unit(unit, param_distribution)
    rng = np.random.default_rng(
      [self.seed, trial.number, name_seed(param_name)]
    )
    drawing = RandomSampler(seed=int(rng.integers(2**32)))
    return drawing.sample_independent(
      study, trial, param_name, param_distribution
    )

  def _tell_of(self, name: str, distribution: BaseDistribution) -> None:
    """Warns once of a parameter that no process will model."""
    if self.simplex is not None and name in self.simplex.names:
      raise InputError(
        f"{name} must be suggested as a float in [0, 1], as `simplex` names "
        f"it; got {distribution}"
      )
    is_modelled = self.simplex is None and isinstance(
      distribution, FloatDistribution
    )
    if not is_modelled and name not in self._told:
      self._told.add(name)
      _LOGGER.warning(
        "%s is drawn at random: %s models %s",
        name,
        type(self).__name__,
        "float parameters" if self.simplex is None else "those of `simplex`",
      )


class SimplexSampler(RecordingSampler):
  """Asks the starts of a space, then the points of a function.

  Args:
    space: of the points.
    name: of who asks, in reports.
    point: the unit points of a trial, one number a name (of negative weights
      none above Bounds.highest_unit), from the study so far; a function of its
      finished trials and the trial's number, or a search that was killed will
      not equal one that was not.
  """

  def __init__(
    self,
    space: Simplices,
    name: str,
    point: Callable[[Study, FrozenTrial], np.ndarray],
  ):
    super().__init__(space, len(space.starts_NxK), seed=0)
    self._name = name
    self._point = point

  def ask(
    self, study: Study, trial: FrozenTrial, space: Space
  ) -> dict[str, Any]:
    assert isinstance(space, Simplices)
    params = space.params(space.of_unit(self._point(study, trial)))
    return {"asked_by": self._name, "params": params}
