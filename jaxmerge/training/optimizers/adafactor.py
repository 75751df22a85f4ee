"""Adafactor: second moments as the product of a row and a column."""

import dataclasses

import optax

from jaxmerge.config_fields import key
from jaxmerge.training.optimizer import OPTIMIZERS, Optimizer
from jaxmerge.training.parameter_groups import decay_weights, per_layer


@dataclasses.dataclass(frozen=True)
class Knobs:
  decay_rate: float = key(
    0.8, "the second moments' decay at step t is 1 - t**-decay_rate", above=0
  )
  min_factored_size: int = key(
    128, "matrices with a smaller side keep all second moments", at_least=1
  )
  clipping_threshold: float = key(
    1.0, "an update of a larger RMS is scaled down to it", above=0
  )
  parameter_scale: bool = key(
    True, "the learning rate is relative to each parameter's RMS"
  )
  momentum: float = key(
    0.0,
    "decay of a moving average of updates; 0: there is none",
    at_least=0,
    below=1,
  )
  weight_decay: float = key(
    0.0, "of matrices; norm scales and biases have none", at_least=0
  )


def adafactor(
  schedule: optax.Schedule, knobs: Knobs
) -> optax.GradientTransformation:
  """Adafactor (arXiv 1804.04235), of each layer by itself.

  As optax.adafactor, but that the weight decay is times the learning rate. Of a
  whole stack that would clip all layers together, and might factor the axis of
  layers.
  """
  parts = [
    optax.scale_by_factored_rms(
      decay_rate=knobs.decay_rate,
      min_dim_size_to_factor=knobs.min_factored_size,
    ),
    optax.clip_by_block_rms(knobs.clipping_threshold),
    optax.scale_by_learning_rate(schedule),
  ]
  if knobs.parameter_scale:
    parts.append(optax.scale_by_param_block_rms())
  if knobs.momentum:
    parts.append(optax.ema(knobs.momentum, debias=False))
  return optax.chain(
    per_layer(optax.chain(*parts)),
    decay_weights(schedule, knobs.weight_decay),
  )


OPTIMIZERS.register(
  Optimizer(
    "adafactor",
    "Adafactor, second moments in factors (arXiv 1804.04235)",
    Knobs,
    adafactor,
  )
)
