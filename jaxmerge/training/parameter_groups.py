"""Which parameters an optimiser treats alike, told by their names."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxmerge.parallel.rules import is_stacked, leaf_name


def map_names(function: Callable[[str], Any], params: Any) -> Any:
  """A tree like the parameters, of a function of their names."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: function(leaf_name(path)), params
  )


def decays(params: Any) -> Any:
  """Marks the parameters that weight decay acts on: matrices."""
  return map_names(
    lambda name: name.rpartition("/")[2] not in ("scale", "bias"), params
  )


def decay_weights(
  schedule: optax.Schedule, weight_decay: float
) -> optax.GradientTransformation:
  """Decoupled weight decay, for updates that are times the rate already."""

  def rate(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    return -weight_decay * schedule(count)

  return optax.add_decayed_weights(rate, mask=decays)


def per_layer(
  transformation: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Acts on each layer of a stack as if it were a parameter of its own.

  For what is not elementwise. Each layer has a state, a count of steps as well.
  """
  stacked = optax.GradientTransformation(
    jax.vmap(transformation.init), jax.vmap(transformation.update)
  )
  return optax.partition(
    {True: stacked, False: transformation},
    lambda params: map_names(is_stacked, params),
  )
