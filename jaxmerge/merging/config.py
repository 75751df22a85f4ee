"""The config of a merge."""

import dataclasses
from typing import Any

from jaxmerge.config_fields import key, knobs_of, section
from jaxmerge.data.config import CorpusConfig
from jaxmerge.merging.method import METHODS
from jaxmerge.parallel.mesh import MEMORY_BUDGET, MeshConfig


@dataclasses.dataclass(frozen=True)
class MergeConfig:
  """The keys of `python -m jaxmerge.merge`."""

  inputs: tuple[str, ...] = key(
    (), "as --inputs, which are taken instead of them"
  )
  weights: tuple[float, ...] = key(
    (), "as --weights, which are taken instead of them"
  )
  method: str = key("uniform", "how to merge (docs/merge.md)", choices=METHODS)
  knobs: Any = knobs_of("method", METHODS)
  dtype: str = key(
    "",
    "of the output's weights; empty: the widest of the inputs",
    choices=("", "float32", "bfloat16", "float16"),
  )
  search_sequences: int = key(
    64, "measured on, by methods that need losses or gradients", at_least=1
  )
  batch_size: int = key(
    16, "sequences measured at once, over all devices", at_least=1
  )
  seq_len: int = key(0, "targets in a sequence; 0: as in training", at_least=0)
  memory_budget_gb: float = key(0.0, MEMORY_BUDGET, at_least=0)
  data: CorpusConfig = section(CorpusConfig)
  mesh: MeshConfig = section(MeshConfig)
