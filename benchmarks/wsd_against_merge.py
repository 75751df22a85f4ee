"""Does a merge of the last checkpoints do the work of a learning-rate decay?

  taskset -c 0 python benchmarks/wsd_against_merge.py    (20 minutes of 1 core)

A seed trains the quickstart's model at a constant rate to the last step. For
each window, a branch leaves that run where the window begins and decays to zero
(1-sqrt, over the middle window linearly as well) over the same tokens, and the
run's own last six checkpoints, evenly spaced over the same window, are merged:
uniformly, with the weights that stand for a 1-sqrt decay, and with weights that
the search verb finds on the search split. All are scored on the report split.
Prints Markdown tables of losses and of differences to the decayed models, after
each seed. The same command goes on where it stopped; `--workdir` keeps all.
"""

from jaxmerge import allocator

if __name__ == "__main__":  # before jax is imported
  allocator.keep_memory()

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

import jaxmerge
from jaxmerge.checkpoints.inputs import open_steps
from jaxmerge.cli.runner import set_up_jax
from jaxmerge.evaluate import evaluate
from jaxmerge.evaluation.score import Score
from jaxmerge.evaluation.statistics import difference
from jaxmerge.merge import merge
from jaxmerge.pretrain import train
from jaxmerge.search import search

_MERGED = 6
_METHODS = ("uniform", "1-sqrt")
_TRIALS = 12
_REPORT_SEQUENCES = 512
CONSTANT = "constant rate, last checkpoint"
LINEAR, SEARCHED = "linear", "searched"


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is trained and merged; `skip` may hold LINEAR and SEARCHED."""

  steps: int
  windows: tuple[int, ...]
  skip: tuple[str, ...]

  def decays(self) -> dict[str, tuple[str, int]]:
    """Shapes and windows by row; a linear one, as control, over the middle."""
    shapes = [("1-sqrt", window) for window in self.windows]
    if LINEAR not in self.skip:
      shapes.append((LINEAR, sorted(self.windows)[len(self.windows) // 2]))
    return {decayed(window, shape): (shape, window) for shape, window in shapes}

  def hows(self) -> tuple[str, ...]:
    """How six checkpoints are merged."""
    return _METHODS if SEARCHED in self.skip else (*_METHODS, SEARCHED)


def decayed(window: int, shape: str = "1-sqrt") -> str:
  """The row of the run that decays over so many steps."""
  return f"{shape} decay over {window}"


def merged(how: str, window: int) -> str:
  """The row of a merge of six checkpoints over so many steps."""
  return f"merge of 6 over {window}, {how}"


@contextlib.contextmanager
def metered(workdir: Path, stage: str) -> Iterator[None]:
  """Adds the CPU-seconds of a stage to workdir/cpu_seconds.jsonl."""
  before = time.process_time()
  try:
    yield
  finally:
    line = json.dumps([stage, time.process_time() - before])
    with open(workdir / "cpu_seconds.jsonl", "a") as file:
      print(line, file=file)


def is_saved(run: Path, step: int) -> bool:
  return (run / "checkpoints" / str(step)).exists()


def check_same_data(constant: Path, branch: Path, start: int, end: int) -> None:
  """Stops if a branch is not its parent's run with another rate.

  Their first loss after the branching is of the same parameters on the same
  batch, and both end at the same place in the data.
  """
  losses, places, rates = [], set(), []
  for run in (constant, branch):
    texts = (run / "metrics.jsonl").read_text().splitlines()
    lines = {line["step"]: line for line in map(json.loads, texts)}
    losses.append(lines[start + 1]["loss"])
    rates.append(lines[end]["learning_rate"])
    places.add(open_steps(run, [end])[0].metadata.iterator)
  if not math.isclose(*losses, rel_tol=1e-6) or len(places) > 1:
    raise SystemExit(f"{branch} is not over the data of {constant}")
  first, last = f"losses of step {start + 1}", f"rates of step {end}"
  print(f"{branch}: {first} {losses}, {last} {rates}, without a decay first")


def train_seed(folder: Path, seed: int, plan: Plan) -> None:
  """The constant run and a decayed branch for each window."""
  config = jaxmerge.load_config("configs/pretrain/quickstart.py")
  config.seed, config.num_steps = seed, (steps := plan.steps)
  config.save_every = math.gcd(*plan.windows) // _MERGED
  config.validation_sequences = 16  # nothing here depends on them
  constant = folder / "constant"
  if not is_saved(constant, steps):
    with metered(folder, "constant run"):
      train(config, constant)
  config.branch = True
  config.optimizer.schedule = "wsd"
  for row, (shape, window) in plan.decays().items():
    config.save_every = config.optimizer.decay_steps = window
    config.optimizer.decay_shape = shape
    branch = folder / f"{shape}_{window}"
    if not is_saved(branch, steps):
      with metered(folder, row):
        train(config, branch, init_from=f"{constant}@{steps - window}")
    check_same_data(constant, branch, steps - window, steps)


def merge_seed(folder: Path, seed: int, plan: Plan) -> dict[str, str]:
  """Merges checkpoints of the constant run; directories by row."""
  constant, steps, found = folder / "constant", plan.steps, {}
  for window in plan.windows:
    every = window // _MERGED
    last = range(steps - every * (_MERGED - 1), steps + 1, every)
    inputs = [f"{constant}@{step}" for step in last]
    for method in _METHODS:
      config = jaxmerge.load_config("configs/merge/uniform.py")
      config.method = method
      output = folder / "merged" / f"{method}_{window}" / str(steps)
      if not output.exists():
        with metered(folder, merged(method, window)):
          merge(config, inputs, output)
      found[merged(method, window)] = str(output)
    if SEARCHED in plan.skip:
      continue
    config = jaxmerge.load_config("configs/search/quickstart.py")
    config.study_name = f"last_{window}"
    config.checkpoint_steps, config.baselines = (), ()
    config.num_trials, config.seed = _TRIALS, seed
    output = folder / "search" / config.study_name / "merged" / str(steps)
    if not output.exists():
      with metered(folder, merged(SEARCHED, window)):
        # Named one by one, or all of the run are scored for the report.
        search(config, folder, inputs=inputs)
    found[merged(SEARCHED, window)] = str(output)
  return found


def score_seed(folder: Path, seed: int, plan: Plan) -> dict[str, Score]:
  """Trains what is not there yet, merges and scores it; scores by row."""
  folder.mkdir(parents=True, exist_ok=True)
  train_seed(folder, seed, plan)
  inputs = {
    row: f"{folder}/{shape}_{window}@{plan.steps}"
    for row, (shape, window) in plan.decays().items()
  }
  inputs[CONSTANT] = f"{folder}/constant@{plan.steps}"
  inputs |= merge_seed(folder, seed, plan)
  config = jaxmerge.load_config("configs/evaluate/quickstart.py")
  config.sequences = _REPORT_SEQUENCES
  with metered(folder, "scoring"):
    rows = evaluate(config, list(inputs.values()))
  return {name: row.score for name, row in zip(inputs, rows)}


def mean_score(scores: Sequence[Score]) -> Score:
  """Item by item, of models that were scored on the same items."""
  values_N = np.mean([score.values_N for score in scores], axis=0)
  return dataclasses.replace(scores[0], values_N=values_N, extras={})


def print_table(
  title: str,
  seeds: Sequence[int],
  rows: Sequence[str],
  cell: Callable[[str, int | None], str],
) -> None:
  """A row has a cell for each seed, and with None one for all of them."""
  heads = [title, *(f"seed {seed}" for seed in seeds), "mean"]
  print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
  for row in rows:
    cells = [row, *(cell(row, seed) for seed in [*seeds, None])]
    print("| " + " | ".join(cells) + " |")


def report(scores: Mapping[int, Mapping[str, Score]], plan: Plan) -> None:
  """Prints the losses, and their differences to those of the decays."""

  def of(name: str, seed: int | None) -> Score:
    every = [scores[s][name] for s in scores]
    return mean_score(every) if seed is None else scores[seed][name]

  def against(
    decay_of: Callable[[str], str], name: str, seed: int | None
  ) -> str:
    other = decay_of(name)
    gap = difference(of(name, seed), of(other, seed))
    text = f"{gap.mean:+.4f} +- {gap.stderr:.4f}"
    if seed is not None or len(scores) < 2:
      return text
    gaps = [difference(of(name, s), of(other, s)).mean for s in scores]
    over_seeds = statistics.stdev(gaps) / math.sqrt(len(gaps))
    return f"{text}, seeds {over_seeds:.4f}"

  seeds = list(scores)
  names = list(scores[seeds[0]])
  documents = len(np.unique(of(names[0], None).clusters_N))
  print(
    f"\nnats/token on {len(of(names[0], None).values_N)} sequences of "
    f"{documents} documents; +- is the paired standard error over documents"
  )
  print_table("loss", seeds, names, lambda *row: f"{of(*row).mean:.4f}")
  same = {
    merged(how, window): decayed(window)
    for window in plan.windows
    for how in plan.hows()
  }
  print_table(
    "less that of the 1-sqrt decay over the same window",
    seeds,
    list(same),
    functools.partial(against, same.__getitem__),
  )
  best = min(plan.decays(), key=lambda name: of(name, None).mean)
  print_table(
    f"less that of the best decay, {best}",
    seeds,
    [name for name in names if name != best],
    functools.partial(against, lambda name: best),
  )


def print_seconds(workdir: Path, seeds: Sequence[int]) -> None:
  """CPU-seconds by stage, those of interrupted stages included."""
  spent: dict[str, float] = {}
  for seed in seeds:
    text = (workdir / f"seed_{seed}" / "cpu_seconds.jsonl").read_text()
    for stage, seconds in map(json.loads, text.splitlines()):
      spent[stage] = spent.get(stage, 0.0) + seconds
  print(f"\n| CPU-seconds, {len(seeds)} seeds | |\n|---|---|")
  for stage, seconds in (spent | {"all": sum(spent.values())}).items():
    print(f"| {stage} | {seconds:.0f} |")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=900)
  parser.add_argument("--windows", default="90,180")
  skips = (LINEAR, SEARCHED)
  parser.add_argument("--skip", nargs="*", choices=skips, default=())
  parser.add_argument("--workdir", type=Path, default="runs/wsd_against_merge")
  arguments = parser.parse_args()
  windows = tuple(map(int, arguments.windows.split(",")))
  if any(window < 1 or window % _MERGED for window in windows):
    parser.error(f"windows must be multiples of {_MERGED}")
  if arguments.steps % (math.gcd(*windows) // _MERGED):
    parser.error("a checkpoint of every sixth of a window must end the run")
  plan = Plan(arguments.steps, windows, tuple(arguments.skip))
  set_up_jax()
  scores = {}
  for seed in range(arguments.seeds):
    folder = arguments.workdir / f"seed_{seed}"
    scores[seed] = score_seed(folder, seed, plan)
    report(scores, plan)
  print_seconds(arguments.workdir, list(scores))


if __name__ == "__main__":
  main()
