"""What do gradients by the weights save, on real checkpoints?

  make quickstart
  python benchmarks/gradients.py runs/quickstart    (5 minutes on 2 cores)

Merges checkpoints of the run on its search split, with and without
use_gradients, several seeds each. Prints what a trial costs in forward passes
(measured here: seconds over those of a plain trial), and how many trials and
forward passes each needs to come within 1 and 0.1 millinats/token of the
lowest loss that any of them found (the median of the seeds; "-": not within
the budget).
"""

import argparse
import tempfile
import time

import numpy as np

from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.checkpoints import inputs
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.cli.runner import set_up_jax
from jaxmerge.evaluation import weight_search
from jaxmerge.evaluation.evaluator import Setting
from jaxmerge.evaluation.evaluators.heldout_loss import heldout_loss
from jaxmerge.evaluation.held_out_splits import open_scorer
from jaxmerge.evaluation.merged_loss import MergedLoss
from jaxmerge.evaluation.objective import Domain
from jaxmerge.evaluation.search_method import SEARCH_METHODS
from jaxmerge.evaluation.weight_search import WeightSearch
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.merging.groups import one_group
from jaxmerge.merging.resident import Trees
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
from jaxmerge.simplex.bounds import Bounds

SETS = {
  "near pair": (600, 700),
  "three": (500, 600, 700),
  "six": (400, 500, 600, 700, 800, 900),
}
WITHIN = (1.0, 0.1)


def losses(merged, domain, budget, seed, use_gradients, folder) -> np.ndarray:
  """Lowest loss after each trial of one search."""
  method = SEARCH_METHODS["gp_hedge"]
  knobs = method.knobs(
    acquisitions=("ei", "pi", "ucb"), use_gradients=use_gradients
  )
  search = WeightSearch(domain, method, knobs, seed, budget)
  study = weight_search.open_weight_study(
    f"{folder}/{len(domain.steps)}-{use_gradients}-{seed}.journal",
    "search",
    search,
    identity={},
  )
  weight_search.run_weight_study(
    study,
    merged,
    search,
    limits=Budget(),
    on_trial=lambda trial: None,
  )
  values = [trial.value for trial in study.trials[:budget]]
  return np.minimum.accumulate(values)


def seconds(call, *arguments) -> float:
  """Median of five calls, after one that compiles."""
  call(*arguments)
  taken = []
  for _ in range(5):
    start = time.perf_counter()
    call(*arguments)
    taken.append(time.perf_counter() - start)
  return float(np.median(taken))


def first_within(runs, lowest: float, millinats: float) -> float:
  """Median number of trials; infinite where a run never comes as near."""
  counts = []
  for best in runs:
    near = np.flatnonzero(best <= lowest + 1e-3 * millinats)
    counts.append(near[0] + 1 if len(near) else np.inf)
  return float(np.median(counts))


def shown(trials: float, passes: float) -> str:
  if not np.isfinite(trials):
    return "-"
  return f"{trials:g} trials, {trials * passes:.0f} passes"


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("workdir", nargs="?", default="runs/quickstart")
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--budget", type=int, default=16)
  parser.add_argument("--sequences", type=int, default=64)
  arguments = parser.parse_args()
  set_up_jax()
  mesh = make_mesh(data=-1, fsdp=1, tensor=1)
  print(
    "| checkpoints | gradients | passes a trial | within 1 millinat |"
    " within 0.1 |\n|---|---|---|---|---|"
  )
  for name, steps in SETS.items():
    checkpoints = inputs.open_steps(arguments.workdir, steps)
    metadata = checkpoints[-1].metadata
    scorer = open_scorer(
      Setting(metadata, mesh, 16), lambda text: None, heldout_loss
    )
    where = shardings(abstract_params(metadata), mesh)
    trees = [restore_params(c.path, where) for c in checkpoints]
    groups = one_group(trees[0])
    split = scorer.on("search", arguments.sequences)
    merged = MergedLoss(Trees(trees), split, groups)
    domain = Domain(steps, groups, Bounds())
    middle = [[1 / len(steps)] * len(steps)]
    plain = seconds(merged.score, middle)
    slope = seconds(merged.differentiated, middle)
    costs = {False: 1.0, True: slope / plain}
    with tempfile.TemporaryDirectory() as folder:
      runs = {
        use: [
          losses(merged, domain, arguments.budget, seed, use, folder)
          for seed in range(arguments.seeds)
        ]
        for use in costs
      }
    lowest = min(best[-1] for found in runs.values() for best in found)
    for use, found in runs.items():
      cells = [
        shown(first_within(found, lowest, w), costs[use]) for w in WITHIN
      ]
      print(
        f"| {name} ({', '.join(map(str, steps))}) | {'yes' if use else 'no'} |"
        f" {costs[use]:.1f} | {' | '.join(cells)} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
