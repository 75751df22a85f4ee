"""Weight searches of other libraries, called as bayesopt.baselines are.

They see the simplex as K - 1 stick-breaking parameters in the unit box (for
two checkpoints: lambda). Each begins with the last checkpoint alone, as ours
does, then with its own start design, of half the budget at most.
"""

import numpy as np
import optuna

from jaxmerge.bayesopt.baselines import Baseline, Loss, with_sampler
from jaxmerge.simplex.points import sticks_from_unit, unit_from_sticks

_NUM_STARTS = 10


def _num_starts(budget: int) -> int:
  return min(_NUM_STARTS, budget // 2)


def _last(num_weights: int) -> list[float]:
  return sticks_from_unit(np.eye(num_weights)[-1])


def _optuna_gp(loss: Loss, num_weights: int, budget: int, seed: int) -> None:
  with_sampler(
    lambda seed: optuna.samplers.GPSampler(
      seed=seed, n_startup_trials=_num_starts(budget)
    )
  )(loss, num_weights, budget, seed)


def _scikit_optimize(
  loss: Loss, num_weights: int, budget: int, seed: int
) -> None:
  import skopt

  optimizer = skopt.Optimizer(
    [(0.0, 1.0)] * (num_weights - 1),
    base_estimator="GP",
    acq_func="gp_hedge",
    n_initial_points=_num_starts(budget),
    random_state=seed,
  )
  point = _last(num_weights)
  for _ in range(budget):
    optimizer.tell(list(point), loss(unit_from_sticks(point)))
    point = optimizer.ask()


def _bayes_opt(loss: Loss, num_weights: int, budget: int, seed: int) -> None:
  from bayes_opt import BayesianOptimization

  names = [f"s_{i}" for i in range(num_weights - 1)]
  optimizer = BayesianOptimization(
    f=lambda **s: -loss(unit_from_sticks([s[n] for n in names])),
    pbounds=dict.fromkeys(names, (0.0, 1.0)),
    random_state=seed,
    verbose=0,
    allow_duplicate_points=True,
  )
  optimizer.probe(dict(zip(names, _last(num_weights), strict=True)))
  starts = _num_starts(budget) - 1
  optimizer.maximize(init_points=starts, n_iter=budget - starts - 1)


def _botorch(loss: Loss, num_weights: int, budget: int, seed: int) -> None:
  import torch
  from botorch.acquisition import LogExpectedImprovement
  from botorch.fit import fit_gpytorch_mll
  from botorch.models import SingleTaskGP
  from botorch.models.transforms import Standardize
  from botorch.optim import optimize_acqf
  from gpytorch.mlls import ExactMarginalLogLikelihood

  torch.manual_seed(seed)
  dimension = num_weights - 1
  bounds = torch.tensor([[0.0] * dimension, [1.0] * dimension]).double()
  sobol = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
  starts = sobol.draw(_num_starts(budget) - 1).double()
  points = torch.cat([torch.tensor([_last(num_weights)]).double(), starts])
  values = [-loss(unit_from_sticks(p.tolist())) for p in points]
  while len(values) < budget:
    y = torch.tensor(values).double().unsqueeze(-1)
    model = SingleTaskGP(points, y, outcome_transform=Standardize(m=1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    point, _ = optimize_acqf(
      LogExpectedImprovement(model, best_f=y.max()),
      bounds=bounds,
      q=1,
      num_restarts=5,
      raw_samples=64,
    )
    points = torch.cat([points, point])
    values.append(-loss(unit_from_sticks(point[0].tolist())))


PEERS: dict[str, Baseline] = {
  "scikit-optimize gp_hedge": _scikit_optimize,
  "optuna GPSampler": _optuna_gp,
  "botorch logEI": _botorch,
  "bayes_opt": _bayes_opt,
}
