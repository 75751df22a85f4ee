"""One training step: jitted, sharded, compiled once.

B sequences of the global batch, L targets a sequence.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxmerge.model.loss import token_losses
from jaxmerge.parallel.rules import replicated
from jaxmerge.training.state import TrainState


class StepMetrics(NamedTuple):
  """Scalars of one step; they stay on the device until they are logged.

  `loss` (nats/token) and `grad_norm` (before clipping) are of the parameters
  before the update, `learning_rate` of the update.
  """

  loss: jax.Array
  grad_norm: jax.Array
  learning_rate: jax.Array


TrainStep = Callable[[TrainState, jax.Array], tuple[TrainState, StepMetrics]]


def make_train_step(
  graph: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  mesh: Mesh,
  state_sharding: TrainState,
) -> TrainStep:
  """Returns the jitted step, to which the state is donated."""

  def step(
    state: TrainState, tokens_BxL1: jax.Array
  ) -> tuple[TrainState, StepMetrics]:
    def mean_loss(params: Any) -> jax.Array:
      return jnp.mean(token_losses(graph, params, tokens_BxL1))

    loss, grads = jax.value_and_grad(mean_loss)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = StepMetrics(
      loss=loss,
      grad_norm=optax.global_norm(grads),
      learning_rate=jnp.asarray(schedule(state.step), jnp.float32),
    )
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state, state.step + 1), metrics

  return jax.jit(
    step,
    out_shardings=(state_sharding, replicated(mesh)),
    donate_argnums=0,
  )
