"""What does solving for the weights bring, and for how many forward passes?

  python benchmarks/solve.py   (about two hours of 1 core)

Four runs of the quickstart's model, three of the quickstart's corpus with other
seeds and learning rates and one of C++ headers, save nine checkpoints each. The
last K are merged in each way of METHODS, whose choices are made on a search
split; each finished choice is scored once on the report split. Prints Markdown
tables of the paired differences to the optimum of shared weights on the simplex
and of the forward passes of the search split that a choice took. The same
command goes on where it stopped; `--table` prints what is there.

K checkpoints (oldest first), G groups of parameters, C documents.
"""

from jaxmerge import allocator

if __name__ == "__main__":  # before jax is imported
  allocator.keep_memory()

import argparse
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
from solve_runs import RUNS, Bench, Quiet
from solve_tables import OPTIMUM, Case, Tables, by_document

from jaxmerge.bayesopt.baselines import BASELINES
from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.cli.runner import set_up_jax
from jaxmerge.evaluation import search_study
from jaxmerge.evaluation.losses import Losses
from jaxmerge.files import write_json
from jaxmerge.merging import weight_rules
from jaxmerge.merging.differences import gram_weights
from jaxmerge.merging.method import METHODS as MERGE_METHODS
from jaxmerge.simplex.bounds import normalised

# A trial of the Gaussian process; the parabola gets as many passes as the
# goal allows the solver.
GP_TRIALS = {2: 12, 3: 12, 6: 17, 9: 36}
PARABOLA_PASSES = 25
GRADIENT_TRIALS = 9
FEWEST_OF_RNA = 3


def slug(method: str) -> str:
  """A name for files."""
  return "_".join("".join(c if c.isalnum() else " " for c in method).split())


class Found(NamedTuple):
  """Weights (GxK, or a row for all), and what it took to choose them.

  `gap`: no weights have a search loss that is lower by more, where known.
  """

  weights_GxK: Sequence[Sequence[float]]
  tokens: int
  trials: int
  gap: float | None = None


def rule(bench: Bench, case: Case, name: str) -> tuple[Losses, Found]:
  """Weights by name, which need no loss."""
  _, losses = bench.prepared(case)
  [(_, weights_K)] = weight_rules.starts([name], case.count)
  return losses, Found([weights_K], 0, 0)


def parabola(bench: Bench, case: Case, name: str) -> tuple[Losses, Found]:
  """The baseline `quadratic`, as a report's row has it."""
  _, losses = bench.prepared(case)
  asked: list[tuple[float, list[float]]] = []
  tokens = 0

  def loss(unit_K: Sequence[float]) -> float:
    nonlocal tokens
    score = losses.of_merge_on_search([unit_K])
    tokens += score.tokens
    asked.append((score.mean, list(unit_K)))
    return score.mean

  BASELINES[name](loss, case.count, PARABOLA_PASSES, 0)
  return losses, Found([min(asked)[1]], tokens, len(asked))


def searched(
  bench: Bench, case: Case, study_name: str, **keys: Any
) -> tuple[Losses, Found]:
  """The weights that the search verb would merge with."""
  ready, losses = bench.prepared(case, study_name, **keys)
  study = search_study.open_own(ready, losses.items)
  best = search_study.run_trials(study, ready, losses, Budget(), Quiet())
  trials = ready.search.findings(study).trials
  tokens = sum(trial.user_attrs["tokens"] for trial in trials)
  weights_GxK = ready.search.domain.weights(best.params)
  return losses, Found(weights_GxK, tokens, len(trials))


def gp_shared(bench: Bench, case: Case) -> tuple[Losses, Found]:
  """The paper's method."""
  return searched(
    bench, case, "gp", solver="gp_hedge", num_trials=GP_TRIALS[case.count]
  )


def rna(bench: Bench, case: Case) -> tuple[Losses, Found]:
  """The row `rna` of a report."""
  _, losses = bench.prepared(case)
  method = MERGE_METHODS.find("rna")
  weights_K = gram_weights(method, losses.gram(), method.knobs())
  return losses, Found([weights_K], 0, 0)


def optimum(bench: Bench, case: Case) -> tuple[Losses, Found]:
  """The lowest loss of shared weights on the simplex, by SciPy's SLSQP.

  It works in coordinates in which the curvature where it begins is the
  identity, and is told the merged loss and its gradient alone. By convexity no
  weights are better by more than g w - min g, the gap that is kept.
  """
  _, losses = bench.prepared(case)
  merged = losses.merged
  [(_, start_K)] = weight_rules.starts(["lawa"], case.count)
  curvature_DxD = merged.measured([start_K], curvature=True).curvature
  assert curvature_DxD is not None
  free_DxD = curvature_DxD[:-1, :-1]
  ridge = 1e-6 * np.trace(free_DxD) / len(free_DxD)
  root_DxD = np.linalg.cholesky(free_DxD + ridge * np.eye(len(free_DxD)))

  def weights(y_D: np.ndarray) -> np.ndarray:
    free_D = np.linalg.solve(root_DxD.T, y_D)
    return np.append(free_D, 1 - free_D.sum())

  @functools.cache
  def told(y: tuple[float, ...]) -> tuple[float, np.ndarray]:
    score, slopes_GxK, _ = merged.differentiated(
      [normalised(weights(np.array(y)))]
    )
    return score.mean, slopes_GxK[0] - slopes_GxK[0, -1]

  found = scipy.optimize.minimize(
    lambda y_D: told(tuple(y_D))[0],
    root_DxD.T @ start_K[:-1],
    jac=lambda y_D: np.linalg.solve(root_DxD, told(tuple(y_D))[1][:-1]),
    method="SLSQP",
    constraints={"type": "ineq", "fun": weights},
    options={"ftol": 1e-8, "maxiter": 30},
  )
  weights_K = normalised(weights(found.x))
  slopes_K = told(tuple(found.x))[1]
  gap = float(slopes_K @ weights_K - slopes_K.min())
  return losses, Found([weights_K], merged.tokens, found.nfev, gap)


NEGATIVE_GROUPS = {
  "newton, 6 groups, negative": {"layer_groups": "4", "negative": True},
  "newton, 10 groups, negative": {
    "layer_groups": "attention_mlp",
    "negative": True,
  },
}
SPACES: dict[str, dict[str, Any]] = {
  "newton, shared": {},
  "newton, shared, negative": {"negative": True},
  "newton, 6 groups": {"layer_groups": "4"},
  **NEGATIVE_GROUPS,
}
METHODS: dict[str, Callable[[Bench, Case], tuple[Losses, Found]]] = {
  OPTIMUM: optimum,
  **{
    name: functools.partial(rule, name=name)
    for name in ("last", "uniform", "lawa")
  },
  "rna": rna,
  "parabola": functools.partial(parabola, name="quadratic"),
  "GP, shared": gp_shared,
  "GP + gradients, 6 groups": functools.partial(
    searched,
    study_name="gp_gradients",
    solver="gp_hedge",
    num_trials=GRADIENT_TRIALS,
    use_gradients=True,
    layer_groups="4",
  ),
  **{
    name: functools.partial(
      searched, study_name=slug(name), solver="newton", **keys
    )
    for name, keys in SPACES.items()
  },
}


def measure(bench: Bench, case: Case, method: str) -> dict[str, Any]:
  """Chooses weights and scores them once on the report split."""
  bench.opened(case.run)
  began = time.process_time()
  losses, found = METHODS[method](bench, case)
  scores = losses.of_merge(found.weights_GxK)
  return {
    "search_loss": scores.search.mean,
    "report_loss": scores.report.mean,
    "passes": found.tokens / scores.search.tokens,
    "trials": found.trials,
    "gap": found.gap,
    "cpu_seconds": time.process_time() - began,
    "weights": [list(map(float, row)) for row in found.weights_GxK],
    "report": by_document(scores.report),
  }


def cell_path(workdir: Path, case: Case, method: str) -> Path:
  return workdir / "cells" / "_".join(map(str, case)) / f"{slug(method)}.json"


def read_cells(
  workdir: Path, wanted: Iterable[tuple[Case, str]]
) -> dict[tuple[Case, str], Any]:
  """All that is measured."""
  paths = {key: cell_path(workdir, *key) for key in wanted}
  return {
    key: json.loads(path.read_text())
    for key, path in paths.items()
    if path.exists()
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--counts", default="6,9,3,2")
  parser.add_argument("--sequences", default="64,256")
  parser.add_argument("--runs", default=",".join(RUNS))
  parser.add_argument("--methods", default=";".join(METHODS))
  parser.add_argument("--table", action="store_true", help="only print")
  parser.add_argument("--workdir", type=Path, default="runs/solve")
  arguments = parser.parse_args()
  counts, sizes = (
    [int(x) for x in text.split(",")]
    for text in (arguments.counts, arguments.sequences)
  )
  wanted = [
    Case(run, count, size)
    for size in sizes
    for count in counts
    for run in arguments.runs.split(",")
  ]
  methods = arguments.methods.split(";")
  if not arguments.table:
    set_up_jax()
    bench = Bench(arguments.workdir)
    for case, method in itertools.product(wanted, methods):
      if method == "rna" and case.count < FEWEST_OF_RNA:
        continue
      path = cell_path(arguments.workdir, case, method)
      if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        cell = measure(bench, case, method)
        write_json(path, cell)
        told = f"report {cell['report_loss']:.4f}, {cell['passes']:.1f} passes"
        print(*case, method, told, f"{cell['cpu_seconds']:.0f} s", flush=True)
  cells = read_cells(arguments.workdir, itertools.product(wanted, METHODS))
  tables = Tables(cells, tuple(RUNS), tuple(METHODS))
  for size in sizes:
    tables.print_goals(NEGATIVE_GROUPS, SPACES, size)
  for size in sizes:
    tables.print_means(sorted(counts), size)
  for size, count in itertools.product(sizes, sorted(counts)):
    tables.print_runs(count, size)


if __name__ == "__main__":
  main()
