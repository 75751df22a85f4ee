"""Lion: the sign of a momentum."""

import dataclasses

import optax

from jaxmerge.config_fields import key
from jaxmerge.training.optimizer import OPTIMIZERS, Optimizer
from jaxmerge.training.parameter_groups import decays


@dataclasses.dataclass(frozen=True)
class Knobs:
  b1: float = key(
    0.9, "share of the momentum in an update", at_least=0, below=1
  )
  b2: float = key(0.99, "decay of the momentum", at_least=0, below=1)
  weight_decay: float = key(
    0.1, "of matrices; norm scales and biases have none", at_least=0
  )


def lion(
  schedule: optax.Schedule, knobs: Knobs
) -> optax.GradientTransformation:
  """Lion (arXiv 2302.06675).

  Its authors take 3 to 10 times less of the learning rate than with AdamW, and
  as much more of the weight decay.
  """
  return optax.lion(
    schedule,
    b1=knobs.b1,
    b2=knobs.b2,
    weight_decay=knobs.weight_decay,
    mask=decays,
  )


OPTIMIZERS.register(
  Optimizer(
    "lion", "Lion, the sign of a momentum (arXiv 2302.06675)", Knobs, lion
  )
)
