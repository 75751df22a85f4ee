"""The state of training and where each part of it lives."""

from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from jaxmerge.parallel.rules import replicated, shardings


class TrainState(NamedTuple):
  """Parameters, optimiser state and the number of steps taken (int32[]).

  Also the shardings of these, as a tree of the same form.
  """

  params: Any
  opt_state: Any
  step: Any


def state_shardings(
  params: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """A sharding for each leaf: moments lie where their parameters lie.

  Given explicitly, because `jax.jit(optimizer.init)` alone would put them on
  one device and the step would compile twice.

  Args:
    params: arrays or their shapes.
  """
  params_shardings = shardings(params, mesh)
  opt_state = optax.tree_map_params(
    optimizer,
    lambda _, sharding: sharding,
    jax.eval_shape(optimizer.init, params),
    params_shardings,
    transform_non_params=lambda _: replicated(mesh),
  )
  return TrainState(params_shardings, opt_state, replicated(mesh))
