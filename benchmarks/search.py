"""Which search finds the better weights with the same number of evaluations?

  python benchmarks/search.py   (an hour and a half on 2 cores)

On merge landscapes recorded from a real run (record_landscapes.py) every
search gets 5, 8, 12 and 20 evaluations, 16 seeds. Prints the mean regret in
millinats/token: the loss, on all recorded sequences, of the weights that a
search would hand over, minus the lowest loss that there is. "exact": it was
shown that very loss; "noisy": the loss of 16 of the 128 sequences. Needs the
extra [bench].
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import warnings

import landscapes
import numpy as np
import optuna
from landscapes import Landscape

from jaxmerge.bayesopt.baselines import BASELINES
from jaxmerge.simplex.bounds import normalised

BUDGETS = (5, 8, 12, 20)
NOISY_SEQUENCES = 16
OURS = "jaxmerge"
WITH_GRADIENTS = "jaxmerge, gradients"
EQUAL_PASSES = "jaxmerge, gradients at equal passes"
# Forward passes of a trial with its gradient: a pair's jvp, else a vjp.
PASSES = {2: 2.9, 3: 5.1}


class Recorder:
  """A loss that remembers what it was asked."""

  def __init__(self, landscape: Landscape):
    self._landscape = landscape
    self.points: list[list[float]] = []
    self.losses: list[float] = []

  def __call__(self, unit_K) -> float:
    point = normalised(list(unit_K))
    self.points.append(point)
    self.losses.append(self._landscape.loss(np.array(point)))
    return self.losses[-1]

  def best(self) -> np.ndarray:
    return np.array(self.points[int(np.argmin(self.losses))])


def ours(
  shown: Landscape, budget: int, seed: int, use_gradients: bool = False
) -> np.ndarray:
  """The weights that the search verb would hand over."""
  from jaxmerge.bayesopt.sampler import GPHedgeSampler
  from jaxmerge.bayesopt.trials import recommended
  from jaxmerge.merging import weight_rules

  count = shown.num_weights
  names = [f"w_{k}" for k in range(count)]
  order = weight_rules.default_starts(count, use_gradients)
  starts = weight_rules.starts(order, count)[: max(budget // 2, 1)]
  sampler = GPHedgeSampler(
    seed=seed,
    simplex=names,
    use_gradients=use_gradients,
    starts=[weights for _, weights in starts],
  )
  study = optuna.create_study(sampler=sampler)
  space = sampler.infer_relative_search_space(study, None)
  for _ in range(budget):
    trial = study.ask(space)
    weights = np.array([trial.params[name] for name in names])
    trial.set_user_attr("stderr", shown.stderr(weights))
    if use_gradients:
      slopes = [*shown.gradient(weights).tolist(), 0.0]
      trial.set_user_attr("gradient", dict(zip(names, slopes, strict=True)))
      trial.set_user_attr("gradient_stderr", shown.slope_stderr(weights))
    study.tell(trial, shown.loss(weights))
  best = recommended(
    study.trials, sampler.space(), study.direction, use_gradients
  )
  return np.array([best.params[name] for name in names])


def regret(
  method: str, name: str, noisy: bool, budget: int, seed: int
) -> float:
  """Of one search, nats/token."""
  recorded = np.load(landscapes.PATH)
  whole = Landscape(recorded, name)
  shown = Landscape(recorded, name, NOISY_SEQUENCES if noisy else None)
  if method == OURS:
    weights = ours(shown, budget, seed)
  elif method == WITH_GRADIENTS:
    weights = ours(shown, budget, seed, use_gradients=True)
  elif method == EQUAL_PASSES:
    passes = PASSES[min(shown.num_weights, 3)]
    weights = ours(shown, max(int(budget / passes), 1), seed, True)
  else:
    from peers import PEERS

    recorder = Recorder(shown)
    search = (BASELINES | PEERS)[method]
    search(recorder, shown.num_weights, budget, seed)
    weights = recorder.best()
  return whole.loss(weights) - whole.lowest()


def _task(task: tuple) -> float:
  warnings.simplefilter("ignore")
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  return regret(*task)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--methods", default="")
  parser.add_argument("--landscapes", default=",".join(landscapes.SETS))
  parser.add_argument("--seeds", type=int, default=16)
  parser.add_argument("--cache", default="", help="keeps the regrets, by cell")
  parser.add_argument("--print", action="store_true", help="only the cache")
  arguments = parser.parse_args()
  methods = list(filter(None, arguments.methods.split(";")))
  if not methods and not arguments.print:
    from peers import PEERS

    methods = [OURS, WITH_GRADIENTS, EQUAL_PASSES, *PEERS, *BASELINES]
  cache = pathlib.Path(arguments.cache) if arguments.cache else None
  found = json.loads(cache.read_text()) if cache and cache.exists() else {}
  cells = [
    (name, noisy, budget)
    for name in arguments.landscapes.split(",")
    for noisy in (False, True)
    for budget in BUDGETS
  ]
  # One process a core: threads of the libraries would wait for each other.
  for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
  with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
    for method in methods:
      tasks = [
        (method, *cell, seed)
        for cell in cells
        for seed in range(arguments.seeds)
      ]
      regrets = pool.map(_task, tasks, chunksize=4)
      for task, value in zip(tasks, regrets, strict=True):
        key = "/".join(map(str, task[1:-1]))
        found.setdefault(method, {}).setdefault(key, [])
        found[method][key] = [*found[method][key], value][-arguments.seeds :]
      if cache:
        cache.write_text(json.dumps(found))
  print_tables(found, arguments.landscapes.split(","))


def print_tables(found: dict, names: list[str]) -> None:
  """Mean regrets by cell, and where another search is better than ours."""
  worse = []
  for noisy in (False, True):
    print(f"\n{'noisy' if noisy else 'exact'}: mean regret, millinats/token\n")
    print("| landscape | evaluations | " + " | ".join(found) + " |")
    print("|---|---|" + "---|" * len(found))
    for name in names:
      for budget in BUDGETS:
        cell = {
          m: np.array(found[m][f"{name}/{noisy}/{budget}"]) for m in found
        }
        means = [f"{1e3 * values.mean():.3f}" for values in cell.values()]
        print(f"| {name} | {budget} | " + " | ".join(means) + " |")
        worse += beaten(
          cell, f"{name}, {'noisy' if noisy else 'exact'}, {budget}"
        )
  print("\nWhere a search without gradients is better than jaxmerge by two")
  print("standard errors of the difference or more:\n")
  print("\n".join(worse) or "nowhere")


def beaten(cell: dict[str, np.ndarray], where: str) -> list[str]:
  """A line for each search that beats ours in a cell beyond noise."""
  lines = []
  ours = 1e3 * cell[OURS]
  for method, values in cell.items():
    theirs = 1e3 * values
    gap = ours.mean() - theirs.mean()
    noise = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / len(ours))
    if not method.startswith(OURS) and gap > 2 * noise:
      lines.append(
        f"- {where}: {method} {theirs.mean():.3f}, jaxmerge {ours.mean():.3f},"
        f" difference {gap:.3f} +- {noise:.3f}"
      )
  return lines


if __name__ == "__main__":
  main()
