"""AdamW."""

import dataclasses

import optax

from jaxmerge.config_fields import key
from jaxmerge.training.optimizer import OPTIMIZERS, Optimizer
from jaxmerge.training.parameter_groups import decays


@dataclasses.dataclass(frozen=True)
class Knobs:
  b1: float = key(0.9, "decay of the first moment", at_least=0, below=1)
  b2: float = key(0.95, "decay of the second moment", at_least=0, below=1)
  weight_decay: float = key(
    0.1, "of matrices; norm scales and biases have none", at_least=0
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
    mask=decays,
  )


OPTIMIZERS.register(
  Optimizer("adamw", "AdamW (arXiv 1711.05101)", Knobs, adamw)
)
