"""The config of a run."""

import dataclasses
from typing import Any

from jaxmerge.config_fields import key, section
from jaxmerge.data.config import DataConfig
from jaxmerge.model.config import ModelConfig
from jaxmerge.parallel.mesh import MEMORY_BUDGET, MeshConfig
from jaxmerge.training.optimizer import OptimizerConfig


def _count(default: int, help: str, changes_numbers: bool = True) -> Any:
  """Defines a number that the devices count in 32 bits."""
  return key(
    default,
    help,
    at_least=1,
    at_most=2**31 - 1,
    changes_numbers=changes_numbers,
  )


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
  """The config of `python -m jaxmerge.pretrain`."""

  seed: int = key(
    0, "of parameters and of the order of data", at_least=0, below=2**32
  )
  num_steps: int = _count(1000, "steps to train", changes_numbers=False)
  batch_size: int = _count(16, "sequences of a step, over all devices")
  seq_len: int = _count(128, "targets in a sequence")
  log_every: int = _count(
    10, "steps between lines of metrics.jsonl", changes_numbers=False
  )
  save_every: int = _count(100, "steps between checkpoints")
  validation_sequences: int = _count(64, "scored at each checkpoint, at most")
  eval_batch_size: int = _count(
    16, "sequences scored at once, over all devices", changes_numbers=False
  )
  memory_budget_gb: float = key(
    0.0, MEMORY_BUDGET, at_least=0, changes_numbers=False
  )
  data: DataConfig = section(DataConfig)
  model: ModelConfig = section(ModelConfig)
  optimizer: OptimizerConfig = section(OptimizerConfig)
  mesh: MeshConfig = section(MeshConfig)
