"""The fixed parts of a run: model, optimiser, mesh, shardings, start state."""

import dataclasses
from typing import Any

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
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder, init_params
from jaxmerge.training.start import check_resumable
from jaxmerge.training.state import TrainState, state_shardings
from jaxmerge.training.step import TrainStep, make_train_step


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
    """Allocates nothing.

    Raises:
      InputError: sizes of the model that the mesh does not divide.
    """
    graph, params = abstract_decoder(config)
    shardings = state_shardings(params, optimizer, mesh)
    return cls(config, graph, mesh, optimizer, schedule, shardings)

  def with_vocabulary(self, size: int) -> "Trainer":
    config = dataclasses.replace(self.config, vocab_size=size)
    return self.build(config, self.mesh, self.optimizer, self.schedule)

  def train_step(self) -> TrainStep:
    return make_train_step(
      self.graph, self.optimizer, self.schedule, self.mesh, self.shardings
    )

  def random_start(self, seed: int) -> TrainState:
    """Step 0 from initial parameters, created in place on the mesh."""
    init = jax.jit(
      init_params, static_argnums=0, out_shardings=self.shardings.params
    )
    return self._start(init(self.config, jax.random.key(seed)))

  def start_from(self, checkpoint: Checkpoint) -> TrainState:
    """Step 0 from the parameters of a checkpoint, trained or merged.

    Raises:
      InputError: the checkpoint is damaged.
    """
    params = load_params(checkpoint, self.shardings.params)
    # Imported parameters may be narrower; every one of them is a float32.
    return self._start(
      jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    )

  def resume(
    self, path: epath.Path, run_id: str, iterator: grain.DatasetIterator
  ) -> TrainState:
    """The state of a saved step; moves the iterator to its position.

    Raises:
      InputError: the step is damaged, merged, or of another run.
    """
    metadata = read_metadata(path)
    check_resumable(path, metadata, run_id)
    params = restore_params(path, self.shardings.params)
    abstract = jax.eval_shape(
      self.optimizer.init, abstract_decoder(self.config)[1]
    )
    opt_state = restore_training(
      path,
      opt_state=with_shardings(abstract, self.shardings.opt_state),
      iterator=iterator,
    )
    return TrainState(params, opt_state, self._step(metadata.step))

  def _start(self, params: Any) -> TrainState:
    init = jax.jit(self.optimizer.init, out_shardings=self.shardings.opt_state)
    return TrainState(params, init(params), self._step(0))

  def _step(self, step: int) -> jax.Array:
    return jax.device_put(jnp.asarray(step, jnp.int32), self.shardings.step)
