"""How long does the next suggestion take, against three peers?

  python benchmarks/suggest.py        (about 1 minute on 2 cores)

Prints the median time of one suggestion after the first compile, at 8 to 40
finished trials, on a line (two checkpoints) and on the simplex of six, and the
ratio of each peer to ours. Needs the extra [bench]. The peers get the simplex
as five stick-breaking parameters in a box; everybody gets the same scores.

  python benchmarks/suggest.py --twelve    (2 minutes; needs no peer)

Prints CPU-seconds of a suggestion for twelve checkpoints, with groups of
weights and with gradients, and what compiling its program costs once.
"""

import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, GPSampler

from jaxmerge.bayesopt.sampler import GPHedgeSampler

_TRIALS = (8, 12, 16, 24, 32, 40)
_REPEATS = 5
_CASES = {"line (K=2)": 2, "simplex (K=6)": 6}


def _sticks_to_weights(sticks: np.ndarray) -> np.ndarray:
  left = np.concatenate([[1.0], np.cumprod(1 - sticks)])
  return np.concatenate([sticks, [1.0]]) * left


def _data(
  num_weights: int, num_trials: int, repeat: int
) -> tuple[np.ndarray, np.ndarray]:
  """Sticks and losses of a noisy bowl."""
  rng = np.random.default_rng([num_weights, num_trials, repeat])
  sticks = rng.random((num_trials, num_weights - 1))
  target = rng.dirichlet(np.ones(num_weights))
  weights = np.stack([_sticks_to_weights(row) for row in sticks])
  losses = ((weights - target) ** 2).sum(-1)
  return sticks, losses + 0.01 * losses.std() * rng.normal(size=num_trials)


def _timed(action: Callable[[], object]) -> float:
  began = time.perf_counter()
  action()
  return time.perf_counter() - began


def _with_optuna(
  sampler: BaseSampler, points: np.ndarray, losses: np.ndarray
) -> float:
  names = [f"w_{i}" for i in range(points.shape[1])]
  space = {name: FloatDistribution(0.0, 1.0) for name in names}
  study = optuna.create_study(sampler=sampler)
  for point, loss in zip(points, losses, strict=True):
    study.add_trial(
      optuna.trial.create_trial(
        params=dict(zip(names, map(float, point), strict=True)),
        distributions=dict(space),
        value=float(loss),
      )
    )
  return _timed(lambda: study.ask(space))


def _ours(sticks: np.ndarray, losses: np.ndarray) -> float:
  weights = np.stack([_sticks_to_weights(row) for row in sticks])
  names = [f"w_{i}" for i in range(weights.shape[1])]
  return _with_optuna(GPHedgeSampler(seed=0, simplex=names), weights, losses)


def _optuna_gp(sticks: np.ndarray, losses: np.ndarray) -> float:
  return _with_optuna(GPSampler(seed=0, n_startup_trials=1), sticks, losses)


def _scikit_optimize(sticks: np.ndarray, losses: np.ndarray) -> float:
  import skopt

  optimizer = skopt.Optimizer(
    [(0.0, 1.0)] * sticks.shape[1],
    base_estimator="GP",
    acq_func="gp_hedge",
    n_initial_points=1,
    random_state=0,
  )
  optimizer.tell(sticks[:-1].tolist(), losses[:-1].tolist(), fit=False)

  def suggest() -> object:
    # It fits and maximises when told, ask() only reads the answer.
    optimizer.tell(sticks[-1].tolist(), float(losses[-1]))
    return optimizer.ask()

  return _timed(suggest)


def _bayes_opt(sticks: np.ndarray, losses: np.ndarray) -> float:
  from bayes_opt import BayesianOptimization

  bounds = {f"s_{i}": (0.0, 1.0) for i in range(sticks.shape[1])}
  optimizer = BayesianOptimization(
    f=None, pbounds=bounds, random_state=0, verbose=0
  )
  for stick, loss in zip(sticks, losses, strict=True):
    optimizer.register(dict(zip(bounds, stick, strict=True)), -float(loss))
  return _timed(optimizer.suggest)


_METHODS = {
  "jaxmerge": _ours,
  "scikit-optimize gp_hedge": _scikit_optimize,
  "optuna GPSampler": _optuna_gp,
  "bayes_opt": _bayes_opt,
}


def _medians(num_weights: int, num_trials: int) -> dict[str, float]:
  """Seconds a suggestion; methods take turns, so that load hits all alike."""
  times: dict[str, list[float]] = {name: [] for name in _METHODS}
  for method in _METHODS.values():
    method(*_data(num_weights, num_trials, 0))  # compiles, imports
  for repeat in range(1, _REPEATS + 1):
    data = _data(num_weights, num_trials, repeat)
    for name, method in _METHODS.items():
      times[name].append(method(*data))
  return {name: statistics.median(values) for name, values in times.items()}


def _twelve() -> None:
  """CPU-seconds a suggestion of ours, of 12 weights after 8 trials."""
  print("| groups | gradients | CPU-seconds | the first, which compiles |")
  print("|---|---|---|---|")
  for groups, gradients in ((1, False), (1, True), (4, False), (4, True)):
    names = [[f"{g}/w_{k}" for k in range(12)] for g in range(groups)]
    flat = [name for group in names for name in group]
    sampler = GPHedgeSampler(
      seed=0, simplex=names, use_gradients=gradients, starts=np.eye(12)[-3:]
    )
    study = optuna.create_study(sampler=sampler)
    space = {name: FloatDistribution(0.0, 1.0) for name in flat}
    target = np.random.default_rng(0).dirichlet(np.ones(12), groups).ravel()
    spent = []
    for _ in range(12):
      began = time.process_time()
      trial = study.ask(space)
      spent.append(time.process_time() - began)
      gap = np.array([trial.params[name] for name in flat]) - target
      slopes = dict(zip(flat, (2 * gap).tolist(), strict=True))
      trial.set_user_attr("gradient", slopes)
      study.tell(trial, float((gap**2).sum()))
    median = statistics.median(spent[7:])
    yes = "yes" if gradients else "no"
    print(f"| {groups} | {yes} | {median:.2f} | {max(spent):.1f} |", flush=True)


def main() -> None:
  warnings.simplefilter("ignore")
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  if "--twelve" in sys.argv:
    _twelve()
    return
  print(
    f"Median seconds a suggestion of {_REPEATS}, {os.cpu_count()} CPU cores;"
  )
  print("in parentheses the ratio to jaxmerge in the same run.\n")
  print("| case | trials | " + " | ".join(_METHODS) + " |")
  print("|---|---|" + "---|" * len(_METHODS))
  for case, num_weights in _CASES.items():
    for num_trials in _TRIALS:
      seconds = _medians(num_weights, num_trials)
      ours = seconds["jaxmerge"]
      cells = [f"{s:.4f} ({s / ours:.1f}x)" for s in seconds.values()]
      print(
        f"| {case} | {num_trials} | " + " | ".join(cells) + " |", flush=True
      )


if __name__ == "__main__":
  main()
