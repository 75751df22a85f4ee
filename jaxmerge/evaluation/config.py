"""The configs of an evaluation and of a search."""

import dataclasses
import re
from typing import Any

from jaxmerge.bayesopt.baselines import BASELINES
from jaxmerge.bayesopt.study.storage import address_problems
from jaxmerge.bayesopt.trials import GRADIENT
from jaxmerge.config_fields import key, knobs_of, section
from jaxmerge.data.config import CorpusConfig
from jaxmerge.evaluation.evaluator import (
  DEFAULT_EVALUATOR,
  EVALUATORS,
  Setting,
)
from jaxmerge.evaluation.search_method import DEFAULT_METHOD, SEARCH_METHODS
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.merging.groups import layer_groups_problems
from jaxmerge.parallel.mesh import MEMORY_BUDGET, MeshConfig, make_mesh


@dataclasses.dataclass(frozen=True)
class ScoringConfig:
  """Keys of the verbs that score models."""

  evaluator: str = key(
    DEFAULT_EVALUATOR, "what a model is scored by", choices=EVALUATORS
  )
  evaluator_knobs: Any = knobs_of("evaluator", EVALUATORS)
  seq_len: int = key(0, "targets in a sequence; 0: as in training", at_least=0)
  batch_size: int = key(
    16, "sequences scored at once, over all devices", at_least=1
  )
  memory_budget_gb: float = key(0.0, MEMORY_BUDGET, at_least=0)
  data: CorpusConfig = section(CorpusConfig)
  mesh: MeshConfig = section(MeshConfig)

  def setting(
    self, metadata: Metadata, allow_unrelated: bool = False
  ) -> Setting:
    """The setting in which an evaluator opens the checkpoint of `metadata`."""
    mesh = make_mesh(**vars(self.mesh))
    size, data, length = self.batch_size, self.data, self.seq_len
    knobs = self.evaluator_knobs
    return Setting(metadata, mesh, size, data, length, allow_unrelated, knobs)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(ScoringConfig):
  """Config of `python -m jaxmerge.evaluate`."""

  split: str = key(
    "report",
    "of the corpus",
    choices=("train", "search", "report", "validation"),
  )
  sequences: int = key(128, "to score, at most", at_least=1)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """Keys of a search's study and report."""

  study_name: str = key(
    "pair", "the study; it lives in <workdir>/search/<study_name>/"
  )
  checkpoint_steps: tuple[int, ...] = key(
    (), "steps to merge, two or more; (): the last checkpoint_window ones"
  )
  checkpoint_window: int = key(
    2, "without checkpoint_steps, so many last ones of the run", at_least=2
  )
  max_seconds: float = key(0.0, "of the search; 0: no limit", at_least=0)
  max_tokens: int = key(0, "to evaluate; 0: no limit", at_least=0)
  baselines: tuple[str, ...] = key(
    ("grid",),
    "plain searches of as many evaluations in the report",
    choices=BASELINES,
  )
  storage: str = key(
    "",
    "of the study; empty: a journal beside the merge; a database URL for "
    "several searchers",
  )
  search_sequences: int = key(64, "scored in each trial", at_least=1)
  report_sequences: int = key(128, "scored for the report", at_least=1)
  report_dir: str = key(
    "",
    "the report's directory in the workdir; empty: search/<study_name>/report",
  )


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
  """Keys of how weights are searched."""

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
  # Each is a slot of the study from its beginning.
  num_trials: int = key(12, "evaluations in all", at_least=2, at_most=10_000)
  seed: int = key(0, "of the search", at_least=0, below=2**32)
  search_method: str = key(
    DEFAULT_METHOD, "how weights are chosen", choices=SEARCH_METHODS
  )
  method_knobs: Any = knobs_of("search_method", SEARCH_METHODS)
  early_stop: bool = key(
    False, "score no further what the best trial beats beyond noise on a part"
  )


@dataclasses.dataclass(frozen=True)
class SearchConfig(ScoringConfig, WeightsConfig, StudyConfig):
  """Config of `python -m jaxmerge.search`."""

  def problems(self, prefix: str) -> list[str]:
    """Lists names that no file may have, and derivatives of what has none."""
    problems = [
      f"{prefix}{name} must be a plain file name, got {value!r}"
      for name, value in (
        ("study_name", self.study_name),
        # Empty is one of the study's own.
        ("report_dir", self.report_dir or "report"),
      )
      if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", value)
    ]
    if self.checkpoint_steps and self.checkpoint_window != 2:
      problems.append(
        f"{prefix}checkpoint_window means nothing beside "
        f"{prefix}checkpoint_steps; leave one of them out"
      )
    problems += address_problems(self.storage)
    if self.report_dir in ("checkpoints", "search", "tensorboard"):
      problems.append(
        f"{prefix}report_dir must not be the run's own {self.report_dir}"
      )
    evaluator = EVALUATORS.get(self.evaluator)
    method, knobs = SEARCH_METHODS.get(self.search_method), self.method_knobs
    wanted = method.measures(knobs) if method else ()
    if GRADIENT in wanted and evaluator and not evaluator.is_differentiable:
      has_knob = hasattr(knobs, "use_gradients")
      problems.append(
        f"{prefix}{'use_gradients' if has_knob else 'search_method'}: the "
        f"evaluator {self.evaluator!r} has no derivatives"
      )
    return problems + layer_groups_problems(self.layer_groups, prefix)
