"""Plain searches that a Gaussian process has to beat at the same budget.

Each is called with a loss over unit points of the simplex (K numbers, larger
last weight is a later checkpoint), the number of weights, the budget and a
seed, and evaluates the loss `budget` times at most, the grid each vertex at
least. All but the grid begin with the vertex of the last checkpoint.

K checkpoints, N points, D = K - 1 free coordinates.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import optuna
import scipy.optimize
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler

from jaxmerge.simplex import points as simplex_points
from jaxmerge.simplex.bounds import normalised

Loss = Callable[[Sequence[float]], float]
Baseline = Callable[[Loss, int, int, int], None]

_RIDGE = 1e-6
_PARABOLA_POINTS = 5
_SAME = 1e-3


def grid(loss: Loss, num_weights: int, budget: int, seed: int) -> None:
  """Regular weights; never fewer than the K checkpoints alone."""
  del seed
  for unit_K in simplex_points.grid(num_weights, budget):
    loss(unit_K.tolist())


def num_evaluations(name: str, num_weights: int, budget: int) -> int:
  """The points that a baseline evaluates: a grid has fewer than the budget."""
  if name == "grid":
    return len(simplex_points.grid(num_weights, budget))
  return budget


def with_sampler(make: Callable[[int], BaseSampler]) -> Baseline:
  """An Optuna sampler in the K - 1 stick-breaking parameters."""

  def search(loss: Loss, num_weights: int, budget: int, seed: int) -> None:
    names = [f"stick_{i}" for i in range(num_weights - 1)]
    space: dict[str, BaseDistribution] = {
      name: FloatDistribution(0.0, 1.0) for name in names
    }
    study = optuna.create_study(sampler=make(seed))
    last = simplex_points.sticks_from_unit(np.eye(num_weights)[-1])
    study.enqueue_trial(dict(zip(names, last, strict=True)))
    for _ in range(budget):
      trial = study.ask(space)
      sticks = [trial.params[name] for name in names]
      study.tell(trial, loss(simplex_points.unit_from_sticks(sticks)))

  return search


def _quadratic_features(unit_NxK: np.ndarray) -> np.ndarray:
  """1, v_i and v_i v_j of all weights but the last (NxF)."""
  free = unit_NxK[:, :-1].T
  pairs = itertools.combinations_with_replacement(free, 2)
  columns = [np.ones(len(unit_NxK)), *free, *(a * b for a, b in pairs)]
  return np.stack(columns, axis=1)


def _lowest_of_parabola(
  points_NxK: np.ndarray, losses_N: np.ndarray
) -> np.ndarray:
  """Minimiser on the simplex of a ridge least-squares quadratic."""
  features_NxF = _quadratic_features(points_NxK)
  targets_N = (losses_N - losses_N.mean()) / (losses_N.std() or 1.0)
  gram = features_NxF.T @ features_NxF
  coefficients_F = np.linalg.solve(
    gram + _RIDGE * np.eye(len(gram)), features_NxF.T @ targets_N
  )
  found = [
    scipy.optimize.minimize(
      lambda unit_K: float(
        (_quadratic_features(unit_K[None]) @ coefficients_F)[0]
      ),
      start_K,
      method="SLSQP",
      bounds=[(0.0, 1.0)] * points_NxK.shape[1],
      constraints={"type": "eq", "fun": lambda unit_K: unit_K.sum() - 1.0},
    )
    for start_K in points_NxK[np.argsort(losses_N)[:3]]
  ]
  return np.asarray(min(found, key=lambda result: result.fun).x)


def quadratic(loss: Loss, num_weights: int, budget: int, seed: int) -> None:
  """Successive parabolas: regular points, then each fit's own minimum.

  For a pair: five regular points, a least-squares parabola through the five
  lowest, its minimum, and so on. For more: as many spread points as a
  quadratic has terms, or half of the budget.
  """
  if num_weights == 2:
    most = _PARABOLA_POINTS
    starts_NxK = simplex_points.grid(2, min(most, max(budget - 1, 2)))[::-1]
  else:
    most = budget
    terms = (num_weights + 1) * num_weights // 2
    centre = np.full((1, num_weights), 1 / num_weights)
    drawn = simplex_points.candidates(num_weights, 16, seed)
    spread = [simplex_points.vertices(num_weights), centre, drawn]
    starts_NxK = np.concatenate(spread)[: min(terms, max(budget // 2, 2))]
  asked = list(starts_NxK[:budget])
  losses: list[float] = []
  rng = np.random.default_rng(seed)
  for number in range(budget):
    if number == len(asked):
      lowest = np.argsort(losses, kind="stable")[:most]
      unit_K = _lowest_of_parabola(
        np.array(asked)[lowest], np.array(losses)[lowest]
      )
      nearest = min(float(np.abs(unit_K - p).max()) for p in asked)
      if nearest < _SAME:  # asked before: look around the best instead
        away = rng.dirichlet(np.ones(num_weights))
        unit_K = 0.9 * asked[int(np.argmin(losses))] + 0.1 * away
      asked.append(unit_K)
    losses.append(loss(normalised(asked[number].tolist())))


BASELINES: dict[str, Baseline] = {
  "random": with_sampler(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
  "grid": grid,
  "quadratic": quadratic,
  # For a pair, which has one parameter, Optuna draws at random instead: CMA-ES
  # is for two or more.
  "cma_es": with_sampler(
    lambda seed: optuna.samplers.CmaEsSampler(
      seed=seed, n_startup_trials=1, warn_independent_sampling=False
    )
  ),
}
