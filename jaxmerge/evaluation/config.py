"""The configs of an evaluation and of a search."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jaxmerge.bayesopt.baselines import BASELINES
from jaxmerge.bayesopt.study.storage import address_problems
from jaxmerge.config_fields import key, knobs_of, section, sections
from jaxmerge.data.config import CorpusConfig
from jaxmerge.evaluation import solvers
from jaxmerge.evaluation.evaluator import (
  DEFAULT_EVALUATOR,
  EVALUATORS,
  Setting,
)
from jaxmerge.evaluation.task_config import (
  Abilities,
  Goal,
  ObjectiveConfig,
  ScoredTasksConfig,
)
from jaxmerge.evaluation.tasks.config import HELD_OUT
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.merging.group_texts import layer_groups_problems
from jaxmerge.parallel.mesh import MEMORY_BUDGET, MeshConfig, make_mesh
from jaxmerge.simplex.bounds import Bounds


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
class DomainConfig(CorpusConfig):
  """A corpus that is scored beside others."""

  source: str = key(help="as data.source")

  def problems(self, prefix: str) -> list[str]:
    found = super().problems(prefix)
    return found if self.source else [f"{prefix}source is empty", *found]


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(ScoringConfig, ScoredTasksConfig):
  """Config of `python -m jaxmerge.evaluate`."""

  split: str = key(
    "report",
    "of the corpus",
    choices=("train", "search", "report", "validation"),
  )
  sequences: int = key(128, "to score, at most, of each corpus", at_least=1)
  domains: Mapping[str, DomainConfig] = sections(DomainConfig)
  use_cache: bool = key(
    True, "keep scores, and score nothing that has been scored before"
  )

  def problems(self, prefix: str) -> list[str]:
    """Lists what does not go together; files of tasks are read by `read`."""
    problems = self.task_problems(prefix)
    if self.domains and self.data.source:
      problems.append(
        f"{prefix}data.source and {prefix}domains are both given; make the one "
        "corpus a domain too"
      )
    if self.domains and HELD_OUT not in self.tasks:
      problems.append(
        f"{prefix}domains: {prefix}tasks has no {HELD_OUT!r}, which alone they "
        "are of"
      )
    return problems + [
      f"{prefix}domains.{name}: a domain's name is a letter, and then letters, "
      "digits, _ and -"
      for name in self.domains
      if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name)
    ]

  @property
  def corpora(self) -> dict[str, "EvaluateConfig"]:
    """By its table's name, the config of each corpus that is scored."""
    if not self.has_held_out:
      return {}
    return {
      f"{HELD_OUT}/{name}": dataclasses.replace(self, data=data, domains={})
      for name, data in self.domains.items()
    } or {HELD_OUT: self}


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
  negative: bool = key(
    False,
    "every weight is in [-1, 2] (beside alpha=0 and beta=0): checkpoints may "
    "be subtracted, and any of them outweighed",
  )
  layer_groups: str = key(
    "",
    "empty: all parameters share their weights; a number such as 4: weights of "
    "their own for the embeddings, so many bands of layers and the head; "
    "'layer': for each layer; 'attention_mlp': for both of each layer; or "
    "patterns over names, as 'embed.*,layers.[0-3].*', of Hugging Face "
    "directories over their own",
  )
  # Each is a slot of the study from its beginning.
  num_trials: int = key(12, "evaluations in all", at_least=2, at_most=10_000)
  seed: int = key(0, "of the search", at_least=0, below=2**32)
  solver: str = key(
    solvers.AUTO,
    "how weights are chosen; auto: newton for groups or six checkpoints of a "
    "loss with curvature, gp_hedge else",
    choices=solvers.SOLVERS,
  )
  solver_knobs: Any = knobs_of("solver", solvers.SOLVERS)
  early_stop: bool = key(
    False, "score no further what the best trial beats beyond noise on a part"
  )

  @property
  def bounds(self) -> Bounds:
    return Bounds(self.alpha, self.beta, self.negative)


@dataclasses.dataclass(frozen=True)
class SearchConfig(ScoringConfig, ObjectiveConfig, WeightsConfig, StudyConfig):
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
    if self.negative and (self.alpha or self.beta):
      problems.append(
        f"{prefix}negative=True gives every weight the bounds -1 and 2; leave "
        f"{prefix}alpha and {prefix}beta at 0 (beta alone lets the last "
        "checkpoint go beyond itself, at the others' cost)"
      )
    is_usual = self.evaluator == DEFAULT_EVALUATOR
    problems += self.objective_problems(
      prefix, "" if is_usual else self.evaluator
    )
    evaluator = EVALUATORS.get(self.evaluator)
    if evaluator is not None:
      scored_by = Abilities() if self.has_questions else evaluator
      knobs = self.solver_knobs
      problems += solvers.problems(prefix, self.solver, knobs, scored_by)
    return problems + layer_groups_problems(self.layer_groups, prefix)

  @property
  def goal(self) -> Goal | None:
    """The aim, where it is not the held-out text's score alone."""
    return self.goal_with(self.evaluator)
