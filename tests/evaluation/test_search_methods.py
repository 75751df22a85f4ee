"""What a search method decides, and what of it tells studies apart."""

import dataclasses

import numpy as np
import pytest
from optuna.trial import TrialState

from jaxmerge.bayesopt.asking import SimplexSampler
from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.bayesopt.study.study import Observation, run_study
from jaxmerge.config_fields import key
from jaxmerge.errors import InputError
from jaxmerge.evaluation.objective import WEIGHTS, Domain
from jaxmerge.evaluation.search_method import SEARCH_METHODS, SearchMethod
from jaxmerge.evaluation.weight_search import (
  WeightSearch,
  choose,
  open_weight_study,
)
from jaxmerge.merging.groups import Groups
from jaxmerge.simplex.bounds import Bounds, weights_from_unit

_DOMAIN = Domain((4, 8, 12), Groups(("",), None, (1.0,)), Bounds())


@dataclasses.dataclass(frozen=True)
class _Knobs:
  pull: float = key(0.5, "towards the first", at_least=0, at_most=1)


def _sampler(found, seed, knobs):
  def point(study, trial):
    rest = (1 - knobs.pull) * np.random.default_rng(len(study.trials)).random()
    return np.array([1 - rest, rest, 0.0])

  return SimplexSampler(found.space, "pulled", point)


_PULLED = SearchMethod(
  "pulled",
  "Pulled",
  "for tests",
  _Knobs,
  _sampler,
  starts=lambda count, knobs: ("uniform",),
)


def _search(method=_PULLED, num_trials=4, **knobs):
  return WeightSearch(_DOMAIN, method, method.knobs(**knobs), 0, num_trials)


def test_the_fingerprint_of_gp_hedge_is_as_before_there_were_others():
  assert _search(SEARCH_METHODS["gp_hedge"]).identity == {
    "seed": 0,
    "alpha": 0.0,
    "beta": 0.0,
    "groups": [""],
    "acquisitions": ["ei", "pi", "ucb"],
    "use_gradients": False,
    "initial_weights": [],
  }


def test_negative_weights_are_told_apart_and_start_as_others_do(tmp_path):
  plain = _search(SEARCH_METHODS["gp_hedge"], num_trials=20)
  domain = _DOMAIN._replace(bounds=Bounds(negative=True))
  negative = plain._replace(domain=domain)
  assert negative.identity == {**plain.identity, "negative": True}
  named = [weights_from_unit(unit, Bounds()) for unit in plain.starts]
  found = [weights_from_unit(unit, domain.bounds) for unit in negative.starts]
  np.testing.assert_allclose(found, named, atol=1e-14)
  assert found[0] == [0.0, 0.0, 1.0]
  path = tmp_path / "journal"
  open_weight_study(path, "a", plain, identity={})
  with pytest.raises(InputError, match="negative"):
    open_weight_study(path, "a", negative, identity={})


def test_a_method_asks_for_unit_points_of_negative_weights(tmp_path):
  def sampler(found, seed, knobs):
    del seed, knobs
    return SimplexSampler(
      found.space, "fixed", lambda *_: np.array([0.5, 0.3, 0.2])
    )

  bounds = Bounds(negative=True)
  search = _search(_PULLED._replace(sampler=sampler))
  search = search._replace(domain=_DOMAIN._replace(bounds=bounds))
  study = open_weight_study(tmp_path / "journal", "a", search, identity={})
  weights = []

  def objective(number, params):
    weights.extend(search.domain.weights(params))
    return Observation(float(number), attrs={WEIGHTS: {}})

  run_study(study, objective, num_trials=4)
  assert weights[0] == [0.0, 0.0, 1.0]
  assert weights[1] == pytest.approx([1 / 3] * 3)
  assert weights[3] == pytest.approx([1.0, 0.2, -0.2])


def test_another_method_is_told_apart_by_its_name_and_knobs(tmp_path):
  found = _search(pull=0.25).identity
  assert (found["solver"], found["pull"]) == ("pulled", 0.25)
  assert "acquisitions" not in found
  path = tmp_path / "journal"
  open_weight_study(path, "a", _search(), identity={})
  for other in (_search(pull=0.25), _search(SEARCH_METHODS["gp_hedge"])):
    with pytest.raises(InputError, match=r"pull|solver"):
      open_weight_study(path, "a", other, identity={})


def test_first_trials_then_what_the_function_says(tmp_path):
  def run(num_trials, limits):
    study = open_weight_study(tmp_path / "j", "a", _search(), identity={})
    objective = lambda number, params: Observation(  # noqa: E731
      sum(params.values()), attrs={WEIGHTS: {}}, tokens=1
    )
    run_study(study, objective, num_trials=num_trials, limits=limits)
    return study

  study = run(4, Budget(tokens=3))
  assert study.trials[3].state == TrialState.WAITING
  # A trial that a dead searcher left keeps the point it was given.
  sampler, storage = study.sampler, study._storage
  waiting = storage.get_trial(study.trials[3]._trial_id)
  space = sampler.infer_relative_search_space(study, waiting)
  asked = sampler.sample_relative(study, waiting, space)
  study.enqueue_trial({})  # another question, were it asked again
  study = run(4, Budget())
  assert study.trials[0].params == {"w_0": 0.0, "w_1": 0.0, "w_2": 1.0}
  assert study.trials[1].params == pytest.approx(
    {"w_0": 1 / 3, "w_1": 1 / 3, "w_2": 1 / 3}
  )
  assert study.trials[3].params == asked
  assert asked["w_0"] >= 0.5


def test_a_recommendation_may_be_no_trial(tmp_path):
  def chosen(method):
    search = _search(method)
    study = open_weight_study(tmp_path / "j", "a", search, identity={})
    objective = lambda number, params: Observation(  # noqa: E731
      abs(number - 2), attrs={WEIGHTS: {}}
    )
    run_study(study, objective, num_trials=4)
    return choose(study, search), study.trials

  best, trials = chosen(_PULLED)
  assert best == (trials[2].params, 2)
  middle = {"w_0": 0.0, "w_1": 0.5, "w_2": 0.5}
  best, _ = chosen(_PULLED._replace(recommend=lambda found, knobs: middle))
  assert best == (middle, None)


def test_what_cannot_be_measured_is_refused():
  method = _PULLED._replace(measures=lambda knobs: ("gradient", "hessian"))
  with pytest.raises(InputError, match="wants 'hessian' measured"):
    _ = _search(method).use_gradients
  method = _PULLED._replace(measures=lambda knobs: ("gradient",))
  assert _search(method).use_gradients
