"""Small studies of random points."""

from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler

from jaxmerge.bayesopt.study.study import Observation, open_study, run_study


class _Anywhere(RandomSampler):
  def infer_relative_search_space(self, study, trial):
    return {"x": FloatDistribution(0, 1)}


def search(storage, name="search", num_trials=2):
  study = open_study(
    storage,
    name,
    sampler=_Anywhere(seed=0),
    identity={},
    num_trials=num_trials,
  )
  run_study(
    study,
    lambda number, params: Observation(params["x"]),
    num_trials=num_trials,
  )
  return study
