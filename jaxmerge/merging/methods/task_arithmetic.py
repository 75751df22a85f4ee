"""Task arithmetic: sums of task vectors tau_i = theta_i - theta_0."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.config_fields import key
from jaxmerge.merging.method import BaseKnobs, Tensors, merge_method


@dataclasses.dataclass(frozen=True)
class TaskKnobs(BaseKnobs):
  scale: float = key(1.0, "factor of the merged task vector")


@merge_method(
  "task_arithmetic",
  "`base` + `scale` * sum of w (input - `base`) (arXiv 2212.04089); of two"
  " inputs A + B - base",
  acts="elementwise",
  knobs=TaskKnobs,
  weights="optional",
  weights_are="factors",
  least=1,
)
def task_arithmetic(
  tensors: Tensors, weights_K: jax.Array, knobs: Any, base: Any
) -> jax.Array:
  """theta_0 + sum_i w_i tau_i (Ilharco et al., arXiv 2212.04089).

  With base C, inputs A and B and weights 1 it is the residual A + B - C.
  """
  steps = (w * (end - base) for w, end in zip(weights_K, tensors))
  return functools.reduce(jnp.add, steps, base)
