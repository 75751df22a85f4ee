"""Stochastic gradient descent with momentum."""

import dataclasses

import optax

from jaxmerge.config_fields import key
from jaxmerge.training.optimizer import OPTIMIZERS, Optimizer
from jaxmerge.training.parameter_groups import decays


@dataclasses.dataclass(frozen=True)
class Knobs:
  momentum: float = key(
    0.9, "decay of the momentum; 0: there is none", at_least=0, below=1
  )
  nesterov: bool = key(False, "Nesterov's form of the momentum")
  weight_decay: float = key(
    0.0, "of matrices; norm scales and biases have none", at_least=0
  )


def sgd(schedule: optax.Schedule, knobs: Knobs) -> optax.GradientTransformation:
  """Momentum (Sutskever et al., 2013), decoupled decay (arXiv 1711.05101)."""
  momentum = optax.trace(knobs.momentum, nesterov=knobs.nesterov)
  return optax.chain(
    momentum if knobs.momentum else optax.identity(),
    optax.add_decayed_weights(knobs.weight_decay, mask=decays),
    optax.scale_by_learning_rate(schedule),
  )


OPTIMIZERS.register(
  Optimizer(
    "sgd",
    "gradient descent with momentum (Sutskever et al., ICML 2013) and "
    "decoupled weight decay (arXiv 1711.05101)",
    Knobs,
    sgd,
  )
)
