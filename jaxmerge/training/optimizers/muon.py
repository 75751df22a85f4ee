"""Muon: the momentum of each matrix, orthogonalised."""

import dataclasses
import re
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from jaxmerge.config_fields import key
from jaxmerge.training.optimizer import OPTIMIZERS, Optimizer
from jaxmerge.training.parameter_groups import decay_weights, map_names


@dataclasses.dataclass(frozen=True)
class Knobs:
  momentum: float = key(
    0.95, "decay of the matrices' momentum", at_least=0, below=1
  )
  nesterov: bool = key(True, "Nesterov's form of it, and of Adam's")
  ns_steps: int = key(
    5, "Newton-Schulz iterations of an update", at_least=1, at_most=100
  )
  consistent_rms: float = key(
    0.2,
    "RMS of the matrices' updates, for rates as AdamW's (arXiv 2502.16982); 0: "
    "updates of singular values near sqrt(max(1, outputs / inputs))",
    at_least=0,
  )
  weight_decay: float = key(
    0.1, "of matrices; norm scales and biases have none", at_least=0
  )
  adam_rate: float = key(
    1.0,
    "learning rate of embedding, head, norms and biases, as a share",
    above=0,
  )
  adam_b1: float = key(0.9, "decay of their first moment", at_least=0, below=1)
  adam_b2: float = key(
    0.95, "decay of their second moment", at_least=0, below=1
  )


def _dimension_numbers(params: Any) -> Any:
  """The axes of the layers' matrices; None for what Adam updates.

  By name: in a stack, (layer, input, output), no matrix has two axes, while
  embedding, head and the stacked norm scales do.
  """
  matrix = MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
  return map_names(
    lambda name: matrix if re.fullmatch("layers/.*kernel", name) else None,
    params,
  )


def muon(
  schedule: optax.Schedule, knobs: Knobs
) -> optax.GradientTransformation:
  """Muon of the layers' matrices (https://kellerjordan.github.io/posts/muon).

  The weight decay is times the learning rate for all matrices alike.
  """

  def adam_schedule(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    return knobs.adam_rate * schedule(count)

  return optax.chain(
    optax.contrib.muon(
      schedule,
      ns_steps=knobs.ns_steps,
      beta=knobs.momentum,
      nesterov=knobs.nesterov,
      adam_b1=knobs.adam_b1,
      adam_b2=knobs.adam_b2,
      adam_learning_rate=adam_schedule,
      muon_weight_dimension_numbers=_dimension_numbers,
      consistent_rms=knobs.consistent_rms or None,
    ),
    decay_weights(schedule, knobs.weight_decay),
  )


OPTIMIZERS.register(
  Optimizer(
    "muon",
    "Muon of the layers' matrices, Adam of the rest (arXiv 2502.16982)",
    Knobs,
    muon,
  )
)
