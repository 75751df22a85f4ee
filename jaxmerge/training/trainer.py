"""The fixed parts of a run and its step: jitted, sharded, compiled once.

B sequences of the global batch, L targets a sequence.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import optax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.model_inputs import load_params
from jaxmerge.checkpoints.store import (
  restore_params,
  restore_training,
  with_shardings,
)
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder, init_params
from jaxmerge.model.loss import token_losses
from jaxmerge.parallel.rules import replicated, shardings


class TrainState(NamedTuple):
  """Parameters, optimiser state and the number of steps taken (int32[]).

  Also the shardings of these, as a tree of the same form.
  """

  params: Any
  opt_state: Any
  step: Any


class StepMetrics(NamedTuple):
  """Scalars of one step; they stay on the device until they are logged.

  `loss` (nats/token) and `grad_norm` (before clipping) are of the parameters
  before the update, `learning_rate` of the update.
  """

  loss: jax.Array
  grad_norm: jax.Array
  learning_rate: jax.Array


TrainStep = Callable[[TrainState, jax.Array], tuple[TrainState, StepMetrics]]


@dataclasses.dataclass(frozen=True)
class Trainer:
  """Holds what stays the same from the first step of a run to the last."""

  config: DecoderConfig
  graph: nnx.GraphDef
  mesh: Mesh
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  shardings: TrainState

  @classmethod
  def build(
    cls,
    config: DecoderConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
  ) -> "Trainer":
    """Allocates nothing; InputError if the mesh does not divide the sizes."""
    graph, params = abstract_decoder(config)
    of_params = shardings(params, mesh)
    # Moments lie where their parameters lie; given explicitly, because
    # `jax.jit(optimizer.init)` alone would put them on one device and the step
    # would compile twice.
    of_opt_state = optax.tree_map_params(
      optimizer,
      lambda _, sharding: sharding,
      jax.eval_shape(optimizer.init, params),
      of_params,
      transform_non_params=lambda _: replicated(mesh),
    )
    places = TrainState(of_params, of_opt_state, replicated(mesh))
    return cls(config, graph, mesh, optimizer, schedule, places)

  def with_vocabulary(self, size: int) -> "Trainer":
    config = dataclasses.replace(self.config, vocab_size=size)
    return self.build(config, self.mesh, self.optimizer, self.schedule)

  def train_step(self) -> TrainStep:
    """Returns the jitted step, to which the state is donated."""

    def step(
      state: TrainState, tokens_BxL1: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
      def mean_loss(params: Any) -> jax.Array:
        return jnp.mean(token_losses(self.graph, params, tokens_BxL1))

      loss, grads = jax.value_and_grad(mean_loss)(state.params)
      updates, opt_state = self.optimizer.update(
        grads, state.opt_state, state.params
      )
      metrics = StepMetrics(
        loss=loss,
        grad_norm=optax.global_norm(grads),
        learning_rate=jnp.asarray(self.schedule(state.step), jnp.float32),
      )
      params = optax.apply_updates(state.params, updates)
      return TrainState(params, opt_state, state.step + 1), metrics

    return jax.jit(
      step,
      out_shardings=(self.shardings, replicated(self.mesh)),
      donate_argnums=0,
    )

  def random_start(self, seed: int) -> TrainState:
    """Step 0 from initial parameters, created in place on the mesh."""
    init = jax.jit(
      init_params, static_argnums=0, out_shardings=self.shardings.params
    )
    return self._start(init(self.config, jax.random.key(seed)))

  def start_from(self, checkpoint: Checkpoint) -> TrainState:
    """Step 0 from the parameters of a checkpoint, trained or merged."""
    params = load_params(checkpoint, self.shardings.params)
    # Imported parameters may be narrower; every one of them is a float32.
    return self._start(
      jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    )

  def resume(
    self, path: epath.Path, step: int, iterator: grain.DatasetIterator
  ) -> TrainState:
    """The state of a saved step; moves the iterator to its position."""
    params = restore_params(path, self.shardings.params)
    abstract = jax.eval_shape(
      self.optimizer.init, abstract_decoder(self.config)[1]
    )
    opt_state = restore_training(
      path,
      opt_state=with_shardings(abstract, self.shardings.opt_state),
      iterator=iterator,
    )
    return TrainState(params, opt_state, self._step(step))

  def _start(self, params: Any) -> TrainState:
    init = jax.jit(self.optimizer.init, out_shardings=self.shardings.opt_state)
    return TrainState(params, init(params), self._step(0))

  def _step(self, step: int) -> jax.Array:
    return jax.device_put(jnp.asarray(step, jnp.int32), self.shardings.step)
