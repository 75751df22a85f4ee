"""The fixed parts of a run and its step: jitted, sharded, compiled once."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.model_inputs import load_params
from jaxmerge.checkpoints.store import (
  restore_item,
  restore_params,
  with_shardings,
)
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder, init_params
from jaxmerge.model.execution import PLAIN, Execution
from jaxmerge.parallel.rules import replicated, shardings
from jaxmerge.training.averages import EMA, LAWA, AveragesConfig
from jaxmerge.training.optimizer import at_step
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
    averages: which of the parameters are kept beside them.
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
  averages: AveragesConfig

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
    averages: AveragesConfig = AveragesConfig(),  # noqa: B008  (frozen)
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
    followers = {EMA: of_params} if averages.ema_decay else {}
    places = TrainState(of_params, of_opt_state, replicated(mesh), followers)
    rest = (step, execution, end_of_text, averages)
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
      self.averages,
    )

  def abstract_state(self) -> TrainState:
    """The shapes, dtypes and shardings of a state."""
    _, params = abstract_decoder(self.config)
    opt_state = jax.eval_shape(self.optimizer.init, params)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    averages = dict.fromkeys(self.shardings.averages, params)
    state = TrainState(params, opt_state, step, averages)
    return with_shardings(state, self.shardings)

  def abstract_items(self) -> dict[str, Any]:
    """As abstract_state, what a checkpoint holds, by the names of its items."""
    state = self.abstract_state()
    lawa = {LAWA: state.params} if self.averages.lawa else {}
    return {**state.items(), **lawa}

  def train_step(self) -> TrainStep:
    """Returns the jitted step, to which the state is donated."""
    objective = Objective(
      self.graph,
      self.execution,
      self.step.accumulate,
      self.step.z_loss,
      self.end_of_text,
      self.step.document_mask,
    )
    return jax.jit(
      make_step(
        objective,
        self.optimizer,
        self.schedule,
        self.shardings.params,
        self.averages.ema_decay,
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

  def start_from(self, checkpoint: Checkpoint, step: int = 0) -> TrainState:
    """A step from the parameters of a checkpoint, trained or merged, alone.

    Schedules go on behind so many steps; all else of the optimiser is new.
    """
    return self._start(self.params_of(checkpoint), step)

  def params_of(self, checkpoint: Checkpoint) -> Any:
    """The parameters of a checkpoint, as the trainer has them."""
    params = load_params(checkpoint, self.shardings.params)
    # Imported parameters may be narrower; every one of them is a float32.
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)

  def resume(self, path: epath.Path, step: int) -> TrainState:
    """The state of a saved step.

    A moving average that the step does not have, as where a branch is the
    first to keep one, begins at the parameters.
    """
    params = restore_params(path, self.shardings.params)
    target = self.abstract_state()
    opt_state = restore_item(path, "opt_state", target.opt_state)
    saved = read_metadata(path).leaves
    averages = {
      name: restore_item(path, name, tree) if name in saved else _copied(params)
      for name, tree in target.averages.items()
    }
    return TrainState(params, opt_state, self._step(step), averages)

  def averages_of(self, params: Any) -> dict[str, Any]:
    """The averages that begin at parameters, in memory of their own."""
    return {name: _copied(params) for name in self.shardings.averages}

  def _start(self, params: Any, step: int = 0) -> TrainState:
    init = jax.jit(self.optimizer.init, out_shardings=self.shardings.opt_state)
    opt_state = init(params)
    if step:
      opt_state = jax.jit(
        at_step, donate_argnums=0, out_shardings=self.shardings.opt_state
      )(opt_state, step)
    averages = self.averages_of(params)
    return TrainState(params, opt_state, self._step(step), averages)

  def _step(self, step: int) -> jax.Array:
    return jax.device_put(jnp.asarray(step, jnp.int32), self.shardings.step)


def _copied(params: Any) -> Any:
  """The same in memory of its own: both are donated to the step."""
  return jax.tree.map(lambda leaf: leaf.copy(), params)
