"""The fixed parts of a run and its step: jitted, sharded, compiled once."""

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
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder, init_params
from jaxmerge.model.execution import PLAIN, Execution
from jaxmerge.parallel.rules import replicated, shardings
from jaxmerge.training.state_shardings import state_shardings
from jaxmerge.training.step import (
  Objective,
  StepConfig,
  TrainState,
  TrainStep,
  make_step,
)

# For a program that runs once: LLVM takes half the seconds for the same bits.
_COMPILED_ONCE: dict[str, str | int] = {"xla_backend_optimization_level": 1}


@dataclasses.dataclass(frozen=True)
class Trainer:
  """Holds what stays the same from the first step of a run to the last.

  Attributes:
    execution: how the decoder is computed.
    end_of_text: the id of the token that begins each document.
  """

  config: DecoderConfig
  graph: nnx.GraphDef
  mesh: Mesh
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  shardings: TrainState
  step: StepConfig
  execution: Execution
  end_of_text: int

  @classmethod
  def build(
    cls,
    config: DecoderConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    step: StepConfig = StepConfig(),  # noqa: B008  (frozen)
    execution: Execution = PLAIN,
    end_of_text: int = 0,
  ) -> "Trainer":
    """Allocates nothing; InputError if the mesh does not divide the sizes."""
    graph, params = abstract_decoder(config)
    of_params = shardings(params, mesh)
    # Given explicitly, because `jax.jit(optimizer.init)` alone would put
    # moments on one device and the step would compile twice.
    of_opt_state = state_shardings(
      jax.eval_shape(optimizer.init, params),
      with_shardings(params, of_params),
      mesh,
    )
    places = TrainState(of_params, of_opt_state, replicated(mesh))
    rest = (step, execution, end_of_text)
    return cls(config, graph, mesh, optimizer, schedule, places, *rest)

  def with_tokenizer(self, size: int, end_of_text: int) -> "Trainer":
    """The trainer for a vocabulary whose documents begin with a token."""
    return self.build(
      dataclasses.replace(self.config, vocab_size=size),
      self.mesh,
      self.optimizer,
      self.schedule,
      self.step,
      self.execution,
      end_of_text,
    )

  def abstract_state(self) -> TrainState:
    """The shapes, dtypes and shardings of a state."""
    _, params = abstract_decoder(self.config)
    opt_state = jax.eval_shape(self.optimizer.init, params)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return with_shardings(TrainState(params, opt_state, step), self.shardings)

  def train_step(self) -> TrainStep:
    """Returns the jitted step, to which the state is donated."""
    objective = Objective(
      self.graph,
      self.execution,
      self.step.accumulate,
      self.step.z_loss,
      self.end_of_text if self.step.document_mask else None,
    )
    return jax.jit(
      make_step(
        objective, self.optimizer, self.schedule, self.shardings.params
      ),
      out_shardings=(self.shardings, replicated(self.mesh)),
      donate_argnums=0,
    )

  def random_start(self, seed: int) -> TrainState:
    """Step 0 from initial parameters, created in place on the mesh."""
    is_cpu = self.mesh.devices.flat[0].platform == "cpu"
    init = jax.jit(
      init_params,
      static_argnums=0,
      out_shardings=self.shardings.params,
      compiler_options=_COMPILED_ONCE if is_cpu else None,
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
    opt_state = restore_training(
      path, opt_state=self.abstract_state().opt_state, iterator=iterator
    )
    return TrainState(params, opt_state, self._step(step))

  def _start(self, params: Any) -> TrainState:
    init = jax.jit(self.optimizer.init, out_shardings=self.shardings.opt_state)
    return TrainState(params, init(params), self._step(0))

  def _step(self, step: int) -> jax.Array:
    return jax.device_put(jnp.asarray(step, jnp.int32), self.shardings.step)
