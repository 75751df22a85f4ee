"""The state of training and where each part of it lives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxmerge.checkpoints.store import with_shardings
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder, init_params
from jaxmerge.parallel.rules import replicated, shardings


class TrainState(NamedTuple):
  """Parameters, optimiser state and the number of steps taken (int32[]).

  Also the shardings of these, as a tree of the same form.
  """

  params: Any
  opt_state: Any
  step: Any


def state_shardings(
  config: DecoderConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """A sharding for each leaf: moments lie where their parameters lie.

  Given explicitly, because `jax.jit(optimizer.init)` alone would put them on
  one device and the step would compile twice.
  """
  _, params = abstract_decoder(config)
  params_shardings = shardings(params, mesh)
  opt_state = optax.tree_map_params(
    optimizer,
    lambda _, sharding: sharding,
    jax.eval_shape(optimizer.init, params),
    params_shardings,
    transform_non_params=lambda _: replicated(mesh),
  )
  return TrainState(params_shardings, opt_state, replicated(mesh))


def abstract_opt_state(
  config: DecoderConfig,
  optimizer: optax.GradientTransformation,
  state_sharding: TrainState,
) -> Any:
  """Shapes, dtypes and shardings of the optimiser state, for a restore."""
  _, params = abstract_decoder(config)
  abstract = jax.eval_shape(optimizer.init, params)
  return with_shardings(abstract, state_sharding.opt_state)


def start_state(
  params: Any,
  optimizer: optax.GradientTransformation,
  state_sharding: TrainState,
) -> TrainState:
  """Step 0 from given parameters."""
  init = jax.jit(optimizer.init, out_shardings=state_sharding.opt_state)
  return TrainState(params, init(params), _step(0, state_sharding))


def resumed_state(
  params: Any, opt_state: Any, step: int, state_sharding: TrainState
) -> TrainState:
  return TrainState(params, opt_state, _step(step, state_sharding))


def random_params(
  config: DecoderConfig, seed: int, state_sharding: TrainState
) -> Any:
  """Initial parameters, created in place on the mesh."""
  init = jax.jit(
    init_params, static_argnums=0, out_shardings=state_sharding.params
  )
  return init(config, jax.random.key(seed))


def _step(step: int, state_sharding: TrainState) -> jax.Array:
  return jax.device_put(jnp.asarray(step, jnp.int32), state_sharding.step)
