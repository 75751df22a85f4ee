"""The config of a run."""

import dataclasses
from typing import Any

from jaxmerge.config_fields import key, section
from jaxmerge.data.config import DataConfig
from jaxmerge.errors import Problems
from jaxmerge.model.config import ModelConfig
from jaxmerge.parallel.mesh import MEMORY_BUDGET, MeshConfig
from jaxmerge.training import keep
from jaxmerge.training.averages import AveragesConfig
from jaxmerge.training.keep import KeepConfig, Policy, Span
from jaxmerge.training.merging import MergingConfig, merging_problems
from jaxmerge.training.optimizer import SCHEDULES, OptimizerConfig
from jaxmerge.training.scoring import TaskScoringConfig, scoring_problems
from jaxmerge.training.sources import NEWEST, STATES
from jaxmerge.training.step import ROLLED_BACK, StepConfig
from jaxmerge.training.tracker import TRACKERS, tracker_problems

# The devices count in 32 bits.
_COUNT: Any = {"at_least": 1, "at_most": 2**31 - 1}
_FREE = _COUNT | {"changes_numbers": False}


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
  """The config of `python -m jaxmerge.pretrain`."""

  seed: int = key(
    0, "of parameters and of the order of data", at_least=0, below=2**32
  )
  num_steps: int = key(
    1000,
    "steps to train, those before a branch included; fixed where the schedule "
    "depends on it",
    **_FREE,
  )
  batch_size: int = key(16, "sequences of a step, over all devices", **_COUNT)
  seq_len: int = key(128, "targets in a sequence", **_COUNT)
  log_every: int = key(10, "steps between lines of metrics.jsonl", **_FREE)
  save_every: int = key(100, "steps between checkpoints", **_COUNT)
  validation_sequences: int = key(
    64, "scored at each checkpoint, at most", **_COUNT
  )
  eval_batch_size: int = key(
    16, "sequences scored at once, over all devices", **_FREE
  )
  branch: bool = key(
    False,
    "go on from --init_from with its optimiser state, step and place in the "
    "data, not from its parameters alone",
  )
  branch_state: str = key(
    NEWEST,
    "of a branch from a merge, the optimiser state: that of the newest step in "
    "it, the mean of all by its weights, or none",
    choices=STATES,
  )
  trackers: tuple[str, ...] = key(
    ("tensorboard",),
    "what shows the run while it trains; (): metrics.jsonl alone",
    choices=TRACKERS,
    changes_numbers=False,
  )
  profile_steps: tuple[int, ...] = key(
    (),
    "the first and the last step of a trace in <workdir>/profile; (): none",
    changes_numbers=False,
  )
  memory_budget_gb: float = key(
    0.0, MEMORY_BUDGET, at_least=0, changes_numbers=False
  )
  data: DataConfig = section(DataConfig)
  model: ModelConfig = section(ModelConfig)
  optimizer: OptimizerConfig = section(OptimizerConfig)
  step: StepConfig = section(StepConfig)
  averages: AveragesConfig = section(AveragesConfig)
  merging: MergingConfig = section(MergingConfig)
  scoring: TaskScoringConfig = section(TaskScoringConfig, changes_numbers=False)
  keep: KeepConfig = section(KeepConfig)
  mesh: MeshConfig = section(MeshConfig)

  def span(self, start: int = 0) -> Span:
    """The run's checkpoints and phases, behind the step it begins at."""
    phases = self.optimizer.phases(self.num_steps)
    return Span(start, self.num_steps, self.save_every, phases)

  @property
  def reads(self) -> int:
    """The number of newest checkpoints that the run reads at the next one."""
    merged = self.merging.window if self.merging.every else 0
    back = ROLLED_BACK if self.step.roll_back else 0
    return max(self.averages.lawa - 1, merged - 1, back, 0)

  def keep_rules(self, start: int = 0) -> Policy:
    """The checkpoints that stay; InputError as keep.policy."""
    return keep.policy(self.keep, self.span(start), self.reads)

  def problems(self, prefix: str) -> list[str]:
    """Steps that are no range, phases longer than the run, lacking packages."""
    problems = Problems(self.optimizer.problems_of_length(self.num_steps))
    problems += merging_problems(self, prefix)
    problems += scoring_problems(self, prefix)
    problems += tracker_problems(self.trackers, prefix)
    if self.optimizer.schedule in SCHEDULES and self.save_every > 0:
      problems(self.keep_rules)
    if self.branch_state != NEWEST and not self.branch:
      problems.add(
        f"{prefix}branch_state {self.branch_state} means nothing without "
        f"{prefix}branch"
      )
    steps = self.profile_steps
    if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
      problems.append(
        f"{prefix}profile_steps must be two steps, as (10, 13), or (), got "
        f"{steps}"
      )
    elif steps and steps[0] > self.num_steps:
      problems.append(
        f"{prefix}profile_steps {steps} begin after the last of "
        f"{prefix}num_steps {self.num_steps}"
      )
    if self.step.document_mask and self.data.packs_documents:
      problems.append(
        f"{prefix}step.document_mask goes with {prefix}data.packing="
        "concatenate: documents that are packed attend only to themselves"
      )
    return problems
