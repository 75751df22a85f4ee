"""Runs that solve.py trains, and searches among their checkpoints.

K checkpoints (oldest first).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath
from solve_tables import Case

import jaxmerge
from jaxmerge.checkpoints.inputs import Checkpoint, open_steps
from jaxmerge.checkpoints.model_inputs import as_model
from jaxmerge.config_reading import read
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.evaluator import EVALUATORS, Opened, Setting
from jaxmerge.evaluation.losses import Losses
from jaxmerge.evaluation.search_plan import Places, Prepared
from jaxmerge.evaluation.weight_search import WeightSearch
from jaxmerge.merging.resident import (
  ON_DEVICES,
  Placement,
  Trees,
  load_trees,
)
from jaxmerge.pretrain import train

STEPS = tuple(range(100, 901, 100))
REPORT_SEQUENCES = 512


class Run(NamedTuple):
  """What sets a run apart; `headers` instead of the quickstart's corpus."""

  seed: int
  learning_rate: float
  headers: str = ""


# The headers are those of Debian's llvm-14-dev.
RUNS = {
  "a": Run(1, 2e-3),
  "b": Run(2, 1e-3),
  "c": Run(3, 3e-3),
  "d": Run(4, 2e-3, "/usr/include/llvm-14"),
}


class Quiet:
  """Progress that nobody looks at."""

  def stage(self, name: str, done: int, of: int, note: str = "") -> None:
    pass

  def note(self, name: str, text: str) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Opening:
  """A run whose checkpoints are on the devices."""

  checkpoints: Sequence[Checkpoint]
  setting: Setting
  items: Opened
  trees: Sequence[Any]


def copy_headers(root: Path, texts: Path) -> None:
  """Gives C++ headers the suffix of a text."""
  texts.mkdir(parents=True, exist_ok=True)
  for path in root.rglob("*.h"):
    name = "_".join(path.relative_to(root).parts)
    (texts / f"{name}.txt").write_bytes(path.read_bytes())


def train_run(folder: Path, run: Run) -> None:
  """Goes on with a run until its nine checkpoints are there."""
  if all((folder / "checkpoints" / str(step)).exists() for step in STEPS):
    return
  config = jaxmerge.load_config("configs/pretrain/quickstart.py")
  config.seed = run.seed
  config.optimizer.learning_rate = run.learning_rate
  if run.headers:
    texts = folder.parent.parent / "corpus" / folder.name
    copy_headers(Path(run.headers), texts)
    config.data.source, config.data.globs = "text_files", (f"{texts}/*.txt",)
  train(config, folder)


def search_config(case: Case, keys: Mapping[str, Any]) -> SearchConfig:
  config = jaxmerge.load_config("configs/search/quickstart.py")
  config.checkpoint_steps = STEPS[-case.count :]
  config.search_sequences = case.sequences
  config.report_sequences = REPORT_SEQUENCES
  config.baselines = ()
  config.update(keys)
  return read(SearchConfig, config)


class Bench:
  """The runs, opened once each, in a directory that keeps all."""

  def __init__(self, workdir: Path):
    self.workdir = workdir
    self.opened = functools.cache(self._open)

  def _open(self, name: str) -> Opening:
    folder = self.workdir / "runs" / name
    train_run(folder, RUNS[name])
    found = [as_model(c) for c in open_steps(folder, STEPS)]
    config = search_config(Case(name, 2, 1), {})
    setting = config.setting(found[-1].metadata)
    items = EVALUATORS["heldout_loss"].open(setting, print)
    trees = list(load_trees(found, setting.shardings))
    return Opening(found, setting, items, trees)

  def prepared(
    self, case: Case, study: str = "none", **keys: Any
  ) -> tuple[Prepared, Losses]:
    """What the search verb prepares, with trees that are loaded already."""
    opened, config = self.opened(case.run), search_config(case, keys)
    chosen = opened.checkpoints[-case.count :]
    where = self.workdir / "studies" / "_".join(map(str, case))
    places = Places(epath.Path(where), study, "", "")
    evaluator = EVALUATORS[config.evaluator]
    ready = Prepared(
      places,
      chosen,
      opened.checkpoints,
      WeightSearch.of(config, chosen, evaluator, places.measurements),
      (),
      evaluator,
      opened.setting,
      case.sequences,
      REPORT_SEQUENCES,
      0,
      Placement(ON_DEVICES, 0.0),
    )
    trees = Trees(opened.trees[-case.count :])
    return ready, Losses(ready, opened.items, trees)
