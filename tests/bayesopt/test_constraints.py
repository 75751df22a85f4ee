"""Constraints: acquisitions weighted by feasibility, and what is chosen."""

import math

import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from scipy import stats

from jaxmerge.bayesopt.gp import surrogate
from jaxmerge.bayesopt.gp.acquisition import (
  ACQUISITIONS,
  KAPPA,
  log_feasible,
  log_utility,
)
from jaxmerge.bayesopt.gp.feasibility import Fitted, standardised
from jaxmerge.bayesopt.gp.host import float64_on_host
from jaxmerge.bayesopt.gp.padding import Observations
from jaxmerge.bayesopt.sampler import GPHedgeSampler
from jaxmerge.bayesopt.space import simplices_of
from jaxmerge.bayesopt.study.study import (
  CONSTRAINT_STDERRS,
  Observation,
  open_study,
  run_study,
)
from jaxmerge.bayesopt.trials import (
  constraint_problems,
  is_feasible,
  margins,
  recommended,
)
from jaxmerge.errors import InputError

NAMES = ("w_0", "w_1")
SPACE = simplices_of(NAMES, None)


def test_weighted_acquisitions_are_those_of_the_papers():
  """Against SciPy: EI and PI times prod_t Phi(m_t / s_t)."""
  random = np.random.default_rng(0)
  mean, best = random.normal(size=20), 0.3
  std = random.uniform(0.1, 1, 20)
  mean_TxQ, std_TxQ = (
    random.normal(size=(3, 20)),
    random.uniform(0.2, 1, (3, 20)),
  )
  least_T = np.array([0.0, 0.5, -0.5])
  p_Q = np.prod(stats.norm.cdf((mean_TxQ - least_T[:, None]) / std_TxQ), axis=0)
  z = (mean - best) / std
  expected = {
    "ei": ((mean - best) * stats.norm.cdf(z) + std * stats.norm.pdf(z)) * p_Q,
    "pi": stats.norm.cdf(z) * p_Q,
    "ucb": np.maximum(mean + KAPPA * std - best, 1e-12) * p_Q,
  }
  with float64_on_host():
    log_Q = log_feasible(*map(jnp.asarray, (mean_TxQ, std_TxQ, least_T)))
    np.testing.assert_allclose(np.exp(log_Q), p_Q, rtol=1e-12)
    for name, wanted_Q in expected.items():
      arrays = (jnp.asarray(each) for each in (mean, std, best))
      found_Q = np.exp(log_utility(ACQUISITIONS[name], *arrays) + log_Q)
      np.testing.assert_allclose(found_Q, wanted_Q, rtol=1e-9)


def observed(values):
  lambdas = np.linspace(0, 1, len(values))
  points = np.stack([1 - lambdas, lambdas], axis=1)
  return Observations(points, np.asarray(values), np.zeros(len(values)))


def test_each_margin_has_a_process_of_its_own():
  """The probability is near 1 and 0 where the margins are far from 0."""
  lambdas = np.linspace(0, 1, 9)
  found = standardised(
    [observed(0.55 - lambdas), observed(1e-3 * (lambdas - 0.2))], 1
  )
  x = np.array([0.05, 0.4, 0.9])
  with float64_on_host():
    limits = Fitted(found, 2, 1)
    p = np.exp(limits.log_probability(jnp.asarray(np.stack([1 - x, x], 1))))
  assert p[1] > 0.95
  assert max(p[0], p[2]) < 0.05


def _suggest(margins, previous=None, values=None):
  lambdas = np.linspace(0, 1, 9)
  values = values if values is not None else -((lambdas - 0.8) ** 2)
  if previous is None:
    previous = np.tile([0.5, 0.5], (3, 1))
  return surrogate.suggest(
    observed(values),
    previous,
    SPACE.candidates(0),
    acquisitions=("ei", "pi", "ucb"),
    groups=1,
    rng=np.random.default_rng(0),
    margins=margins,
  )


def test_nominees_are_where_the_constraint_is_likely_to_hold():
  lambdas = np.linspace(0, 1, 9)
  free = _suggest([])
  assert np.abs(free.nominees_JxD[:, 1] - 0.8).max() < 0.05
  assert free.log_feasible_C is None
  bound = _suggest([observed(0.45 - lambdas)])
  assert bound.nominees_JxD[:, 1].max() < 0.47
  assert bound.nominees_JxD[:, 1].min() > 0.3
  grid_C = SPACE.candidates(0)[:, 1]
  feasible_C = np.exp(bound.log_feasible_C)
  assert (feasible_C[grid_C < 0.4] > 0.9).all()
  assert (feasible_C[grid_C > 0.5] < 0.1).all()
  # None is feasible yet: towards where it is most likely.
  none = _suggest([observed(-0.1 - lambdas)])
  assert none.nominees_JxD[:, 1].max() < 0.05
  # An infeasible nominee of before is worth no more than the worst trial.
  before = np.stack([[0.2, 0.6, 0.6], [0.8, 0.4, 0.4]], axis=1)
  paid = _suggest([observed(0.45 - lambdas)], before).rewards_J
  assert paid[0] < paid[1]
  plain = _suggest([], before).rewards_J
  assert plain[0] > plain[1]
  assert paid[1] == pytest.approx(plain[1], abs=0.05)


def _run(tmp_path, constraint, num_trials=10, **keys):
  """A study of a bowl around .8 under a constraint, by name, of lambda."""
  sampler = GPHedgeSampler(seed=0, simplex=NAMES, **keys)
  study = open_study(
    tmp_path / "journal",
    "a",
    sampler=sampler,
    identity={},
    num_trials=num_trials,
  )

  def objective(number, params):
    x = params["w_1"]
    return Observation(
      (x - 0.3) ** 2,
      0.0,
      constraints={"limit": constraint(x)},
      constraint_stderrs={"limit": 1e-4},
    )

  run_study(study, objective, num_trials=num_trials)
  return study


@pytest.mark.parametrize("acquisitions", [("ei", "pi", "ucb"), ("thompson",)])
def test_a_search_recommends_what_is_feasible(tmp_path, acquisitions):
  """Without the constraint lambda = .3 is the best; with it .6."""
  study = _run(tmp_path, lambda x: 0.6 - x, acquisitions=acquisitions)
  best = recommended(study.trials, SPACE, study.direction)
  assert is_feasible(best)
  assert 0.6 <= best.params["w_1"] < 0.64
  # As Optuna itself says.
  assert study.best_trial.number == best.number
  assert study.trials[3].constraints.keys() == {"limit"}
  asked = [t for t in study.trials if t.number > 4]
  assert np.mean([is_feasible(t) or t.params["w_1"] > 0.5 for t in asked]) > 0.7


def test_where_nothing_is_feasible_the_first_is_recommended(tmp_path):
  study = _run(tmp_path, lambda x: 0.1 + x, num_trials=6)
  best = recommended(study.trials, SPACE, study.direction)
  assert best.number == 0
  assert best.params["w_1"] == 1.0
  # It asks where it is least bad.
  assert study.trials[-1].params["w_1"] < 0.2


def test_the_first_is_no_bound_where_it_is_infeasible(tmp_path):
  """Trial 0 (lambda = 1) has the best score, but it must not be taken."""
  sampler = GPHedgeSampler(seed=0, simplex=NAMES)
  study = open_study(
    tmp_path / "j", "a", sampler=sampler, identity={}, num_trials=5
  )
  run_study(
    study,
    lambda number, params: Observation(
      -params["w_1"], 0.01, constraints={"c": params["w_1"] - 0.5}
    ),
    num_trials=5,
  )
  best = recommended(study.trials, SPACE, study.direction)
  assert best.params["w_1"] <= 0.5
  assert best.params["w_1"] > 0


def test_a_constraint_that_is_not_finite_fails_its_trial(tmp_path):
  study = _run(tmp_path, lambda x: math.nan if x == 1 else -1.0, num_trials=3)
  assert study.trials[0].state.name == "FAIL"
  assert "a constraint is not finite" in study.trials[0].user_attrs["failure"]
  assert study.trials[1].user_attrs[CONSTRAINT_STDERRS] == {"limit": 1e-4}


def test_a_killed_search_is_the_same(tmp_path):
  class Killed(Exception):
    pass

  whole = _run(tmp_path, lambda x: 0.6 - x, num_trials=6)
  sampler = GPHedgeSampler(seed=0, simplex=NAMES)
  study = open_study(
    tmp_path / "k", "a", sampler=sampler, identity={}, num_trials=6
  )

  def objective(number, params):
    if number == 4 and not killed:
      killed.append(number)
      raise Killed
    x = params["w_1"]
    return Observation(
      (x - 0.3) ** 2,
      0.0,
      constraints={"limit": 0.6 - x},
      constraint_stderrs={"limit": 1e-4},
    )

  killed = []
  with pytest.raises(Killed):
    run_study(study, objective, num_trials=6)
  run_study(study, objective, num_trials=6)
  assert [t.params for t in study.trials] == [t.params for t in whole.trials]


def test_trials_of_optunas_own_loop_and_what_is_missing():
  sampler = GPHedgeSampler(seed=0, simplex=NAMES)
  study = optuna.create_study(sampler=sampler)

  def tell(with_constraint):
    trial = study.ask()
    x = [trial.suggest_float(name, 0, 1) for name in NAMES][1]
    if with_constraint:
      trial.set_constraint("c", 0.6 - x)
    study.tell(trial, (x - 0.3) ** 2)

  tell(True)
  tell(True)
  with pytest.raises(InputError, match="'c', which every trial"):
    tell(False)
  found = margins(study.trials[:2], SPACE, study.direction)
  assert found[0].values_N.tolist() == [0.4, -0.6]
  assert constraint_problems(study.trials[0], study.trials[:2]) == []
  for errors in (0.1, {"c": "0.1"}):
    study.trials[0].set_user_attr(CONSTRAINT_STDERRS, errors)
    trial = study.get_trials()[0]
    trial.set_user_attr(CONSTRAINT_STDERRS, errors)
    [told] = constraint_problems(trial, [trial])
    assert told.endswith(f"must be of the form {{name: number}}, got {errors}")
