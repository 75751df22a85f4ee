"""The configs of an evaluation and of a search."""

import dataclasses
import re

from jaxmerge.bayesopt.acquisition import NAMES
from jaxmerge.bayesopt.controls import CONTROLS
from jaxmerge.bayesopt.storage import address_problems
from jaxmerge.config_fields import key, section
from jaxmerge.data.config import CorpusConfig
from jaxmerge.merging import weight_rules
from jaxmerge.merging.groups import layer_groups_problems
from jaxmerge.parallel.mesh import MEMORY_BUDGET, MeshConfig

SPLITS = ("train", "search", "report", "validation")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """What `python -m jaxmerge.evaluate` is told."""

  split: str = key("report", "of the corpus", choices=SPLITS)
  sequences: int = key(128, "to score, at most", at_least=1)
  seq_len: int = key(0, "targets in a sequence; 0: as in training", at_least=0)
  batch_size: int = key(
    16, "sequences scored at once, over all devices", at_least=1
  )
  memory_budget_gb: float = key(0.0, MEMORY_BUDGET, at_least=0)
  data: CorpusConfig = section(CorpusConfig)
  mesh: MeshConfig = section(MeshConfig)


# Each is a slot of the study from its beginning.
_MOST_TRIALS = 10_000
# What a run has in its workdir; a report must not be there.
_OF_A_RUN = ("checkpoints", "search", "tensorboard")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """What `python -m jaxmerge.search` is told."""

  study_name: str = key(
    "pair", "the study; it lives in <workdir>/search/<study_name>/"
  )
  checkpoint_steps: tuple[int, ...] = key(
    (), "steps to merge, two or more; (): the last two of the run"
  )
  alpha: float = key(
    0.0, "the last checkpoint weighs at least this", at_least=0, below=1
  )
  beta: float = key(
    0.0,
    "the last checkpoint weighs at most 1 + beta: above 0 beyond itself",
    at_least=0,
    at_most=1,
  )
  layer_groups: str = key(
    "",
    "empty: all parameters share their weights; a number such as 4: weights of "
    "their own for the embeddings, so many bands of layers and the head",
  )
  num_trials: int = key(
    12, "evaluations in all", at_least=2, at_most=_MOST_TRIALS
  )
  max_seconds: float = key(0.0, "of the search; 0: no limit", at_least=0)
  max_tokens: int = key(0, "to evaluate; 0: no limit", at_least=0)
  seed: int = key(0, "of the search", at_least=0, below=2**32)
  acquisitions: tuple[str, ...] = key(
    NAMES, "what GP-Hedge chooses from", choices=NAMES
  )
  initial_weights: tuple[str, ...] = key(
    (),
    "first trials, by name (docs/search.md); (): the default order",
    choices=weight_rules.STARTS,
  )
  use_gradients: bool = key(
    False,
    "tell the process the loss's derivative by the weights: fewer trials, each "
    "of three (a pair) or six forward passes",
  )
  early_stop: bool = key(
    False, "score no further what the best trial beats beyond noise on a part"
  )
  baselines: tuple[str, ...] = key(
    ("grid",),
    "plain searches of as many evaluations in the report",
    choices=CONTROLS,
  )
  storage: str = key(
    "",
    "of the study; empty: a journal beside the merge; a database URL for "
    "several searchers",
  )
  search_sequences: int = key(64, "scored in each trial", at_least=1)
  report_sequences: int = key(128, "scored for the report", at_least=1)
  batch_size: int = key(
    16, "sequences scored at once, over all devices", at_least=1
  )
  seq_len: int = key(0, "targets in a sequence; 0: as in training", at_least=0)
  memory_budget_gb: float = key(0.0, MEMORY_BUDGET, at_least=0)
  report_dir: str = key("report", "the report's directory in the workdir")
  data: CorpusConfig = section(CorpusConfig)
  mesh: MeshConfig = section(MeshConfig)

  def problems(self, prefix: str) -> list[str]:
    """Lists names that no file may have, and an empty choice."""
    problems = [
      f"{prefix}{name} must be a plain file name, got {value!r}"
      for name, value in (
        ("study_name", self.study_name),
        ("report_dir", self.report_dir),
      )
      if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", value)
    ]
    problems += address_problems(self.storage)
    if self.report_dir in _OF_A_RUN:
      problems.append(
        f"{prefix}report_dir must not be the run's own {self.report_dir}"
      )
    if not self.acquisitions:
      problems.append(f"{prefix}acquisitions must not be empty")
    return problems + layer_groups_problems(self.layer_groups, prefix)
