"""The configs of an evaluation and of a search."""

import dataclasses
import re
from typing import Any

from jaxmerge.bayesopt.baselines import BASELINES
from jaxmerge.bayesopt.study.storage import address_problems
from jaxmerge.bayesopt.trials import GRADIENT
from jaxmerge.config_fields import key, knobs_of, section
from jaxmerge.data.config import CorpusConfig
from jaxmerge.evaluation.evaluator import EVALUATORS
from jaxmerge.evaluation.search_method import DEFAULT_METHOD, SEARCH_METHODS
from jaxmerge.merging.groups import layer_groups_problems
from jaxmerge.parallel.mesh import MEMORY_BUDGET, MeshConfig

SPLITS = ("train", "search", "report", "validation")


def _evaluator() -> Any:
  return key("heldout_loss", "what a model is scored by", choices=EVALUATORS)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """Config of `python -m jaxmerge.evaluate`."""

  evaluator: str = _evaluator()
  evaluator_knobs: Any = knobs_of("evaluator", EVALUATORS)
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
  """Config of `python -m jaxmerge.search`."""

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
  evaluator: str = _evaluator()
  evaluator_knobs: Any = knobs_of("evaluator", EVALUATORS)
  num_trials: int = key(
    12, "evaluations in all", at_least=2, at_most=_MOST_TRIALS
  )
  max_seconds: float = key(0.0, "of the search; 0: no limit", at_least=0)
  max_tokens: int = key(0, "to evaluate; 0: no limit", at_least=0)
  seed: int = key(0, "of the search", at_least=0, below=2**32)
  search_method: str = key(
    DEFAULT_METHOD, "how weights are chosen", choices=SEARCH_METHODS
  )
  method_knobs: Any = knobs_of("search_method", SEARCH_METHODS)
  early_stop: bool = key(
    False, "score no further what the best trial beats beyond noise on a part"
  )
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
  batch_size: int = key(
    16, "sequences scored at once, over all devices", at_least=1
  )
  seq_len: int = key(0, "targets in a sequence; 0: as in training", at_least=0)
  memory_budget_gb: float = key(0.0, MEMORY_BUDGET, at_least=0)
  report_dir: str = key("report", "the report's directory in the workdir")
  data: CorpusConfig = section(CorpusConfig)
  mesh: MeshConfig = section(MeshConfig)

  def problems(self, prefix: str) -> list[str]:
    """Lists names that no file may have, and derivatives of what has none."""
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
    evaluator = EVALUATORS.get(self.evaluator)
    method = SEARCH_METHODS.get(self.search_method)
    if (
      evaluator
      and method
      and not evaluator.is_differentiable
      and GRADIENT in method.measures(self.method_knobs)
    ):
      has_knob = hasattr(self.method_knobs, "use_gradients")
      problems.append(
        f"{prefix}{'use_gradients' if has_knob else 'search_method'}: the "
        f"evaluator {self.evaluator!r} has no derivatives"
      )
    return problems + layer_groups_problems(self.layer_groups, prefix)
