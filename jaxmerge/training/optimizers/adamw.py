"""AdamW."""

import dataclasses
import re
from typing import Any

import jax
import optax

from jaxmerge.config_fields import key
from jaxmerge.parallel.rules import leaf_name
from jaxmerge.training.optimizer import OPTIMIZERS, Optimizer


@dataclasses.dataclass(frozen=True)
class Knobs:
  b1: float = key(0.9, "decay of the first moment", at_least=0, below=1)
  b2: float = key(0.95, "decay of the second moment", at_least=0, below=1)
  weight_decay: float = key(
    0.1, "of matrices; norm scales and biases have none", at_least=0
  )


def _decays(params: Any) -> Any:
  """Marks the leaves that weight decay acts on."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not re.search(r"(^|/)(scale|bias)$", leaf_name(path)),
    params,
  )


def adamw(
  schedule: optax.Schedule, knobs: Knobs
) -> optax.GradientTransformation:
  """AdamW (arXiv 1711.05101)."""
  return optax.adamw(
    schedule,
    b1=knobs.b1,
    b2=knobs.b2,
    weight_decay=knobs.weight_decay,
    mask=_decays,
  )


OPTIMIZERS.register(
  Optimizer("adamw", "AdamW (arXiv 1711.05101)", Knobs, adamw, state_bytes=8)
)
