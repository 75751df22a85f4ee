"""The config of a run."""

import dataclasses
from typing import Any

from jaxmerge.config_fields import key, section
from jaxmerge.data.config import DataConfig
from jaxmerge.model.config import ModelConfig
from jaxmerge.parallel.mesh import MEMORY_BUDGET, MeshConfig
from jaxmerge.training.optimizer import OptimizerConfig
from jaxmerge.training.step import StepConfig

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
  mesh: MeshConfig = section(MeshConfig)

  def problems(self, prefix: str) -> list[str]:
    """Steps that are no range, phases that are longer than the run."""
    problems = self.optimizer.problems_of_length(self.num_steps)
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
    return problems
