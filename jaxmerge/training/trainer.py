"""The fixed parts of a run: model, optimiser, mesh, shardings, start state."""

import dataclasses
import math

import grain
import jax
import jax.numpy as jnp
import optax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from jaxmerge.checkpoints.metadata import Metadata, read_metadata
from jaxmerge.checkpoints.sources import load_params
from jaxmerge.checkpoints.store import restore_params, restore_training
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import check
from jaxmerge.files import human_bytes
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.mesh import device_budget
from jaxmerge.parallel.rules import batch_shards
from jaxmerge.training.run import resume_problems
from jaxmerge.training.state import (
  TrainState,
  abstract_opt_state,
  random_params,
  resumed_state,
  start_state,
  state_shardings,
)
from jaxmerge.training.step import TrainStep, make_train_step


@dataclasses.dataclass(frozen=True)
class Trainer:
  """What stays the same from the first step of a run to the last."""

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
    graph, _ = abstract_decoder(config)
    shardings = state_shardings(config, optimizer, mesh)
    return cls(config, graph, mesh, optimizer, schedule, shardings)

  def train_step(self) -> TrainStep:
    return make_train_step(
      self.graph, self.optimizer, self.schedule, self.mesh, self.shardings
    )

  def random_start(self, seed: int) -> TrainState:
    params = random_params(self.config, seed, self.shardings)
    return start_state(params, self.optimizer, self.shardings)

  def start_from(self, checkpoint: Checkpoint) -> TrainState:
    """Step 0 from the parameters of a checkpoint, trained or merged.

    Raises:
      InputError: the checkpoint is damaged.
    """
    params = load_params(checkpoint, self.shardings.params)
    # Imported parameters may be narrower; every one of them is a float32.
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    return start_state(params, self.optimizer, self.shardings)

  def resume(
    self, path: epath.Path, run_id: str, iterator: grain.DatasetIterator
  ) -> TrainState:
    """The state of a saved step; moves the iterator to its position.

    Raises:
      InputError: the step is damaged, merged, or of another run.
    """
    metadata = read_metadata(path)
    check(resume_problems(path, metadata, run_id))
    params = restore_params(path, self.shardings.params)
    opt_state = restore_training(
      path,
      opt_state=abstract_opt_state(self.config, self.optimizer, self.shardings),
      iterator=iterator,
    )
    return resumed_state(params, opt_state, metadata.step, self.shardings)


def start_problems(
  checkpoint: Checkpoint,
  config: DecoderConfig,
  tokenizer: Tokenizer | None = None,
) -> list[str]:
  """Why a run cannot start from the parameters of a checkpoint.

  Args:
    checkpoint: of --init_from.
    config: of the run's model.
    tokenizer: the run's; None while it is not known, and with it the size of
      the vocabulary.
  """
  name = f"--init_from {checkpoint.name}"
  saved = dataclasses.asdict(DecoderConfig.from_dict(checkpoint.metadata.model))
  mine = dataclasses.asdict(config)
  unknown = () if tokenizer else ("vocab_size",)
  problems = [
    f"{name}: model.{key} is {saved[key]!r}, here {mine[key]!r}"
    for key in mine
    if key not in (*_HOW_IT_RUNS, *unknown) and saved[key] != mine[key]
  ]
  if tokenizer and _has_other_tokenizer(checkpoint.metadata, tokenizer):
    problems.append(
      f"{name}: its tokenizer is another one; give it as "
      "--config.data.tokenizer_path (a run keeps its own as tokenizer.json or "
      "tokenizer.model)"
    )
  return problems


def _has_other_tokenizer(metadata: Metadata, tokenizer: Tokenizer) -> bool:
  """By the file of the same kind, or else by the names of all ids."""
  is_other = False
  for kept in metadata.tokenizers():
    if kept.file_name == tokenizer.file_name:
      return kept.hash != tokenizer.hash
    is_other = kept.vocabulary != tokenizer.vocabulary
  return is_other


# Keys of a model's config that do not change what its parameters mean.
_HOW_IT_RUNS = ("dtype", "remat")


def batch_problems(name: str, size: int, mesh: Mesh) -> list[str]:
  """Why a batch of `size` sequences cannot be spread over the mesh."""
  shards = batch_shards(mesh)
  if size % shards:
    return [f"config.{name} {size} is not a multiple of {shards} devices"]
  return []


def memory_problems(
  config: DecoderConfig,
  mesh: Mesh,
  batch_tokens: int,
  state_bytes: float,
  memory_budget_gb: float,
) -> list[str]:
  """Says whether parameters and a batch are more than a device may hold.

  Args:
    config: of the model.
    mesh: of the run.
    batch_tokens: tokens of a step.
    state_bytes: of the optimiser, for each parameter.
    memory_budget_gb: as for device_budget.
  """
  limit = device_budget(memory_budget_gb)
  state = _state_bytes(config, mesh, state_bytes)
  # One activation and its gradient; a step needs many more.
  batch = 8 * config.hidden_size * batch_tokens / batch_shards(mesh)
  if state + batch <= limit:
    return []
  return [
    f"the run needs {human_bytes(state)} for parameters, gradients and moments "
    f"and {human_bytes(batch)} or more for a batch on each device, of which "
    f"{human_bytes(limit)} may be used; see config.memory_budget_gb"
  ]


def _num_parameters(config: DecoderConfig) -> int:
  _, abstract = abstract_decoder(config)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))


def _state_bytes(
  config: DecoderConfig, mesh: Mesh, state_bytes: float
) -> float:
  """Bytes on each device of parameters, gradients and the optimiser's state."""
  shards = mesh.shape["fsdp"] * mesh.shape["tensor"]
  return (8 + state_bytes) * _num_parameters(config) / shards


def plan_text(
  config: DecoderConfig,
  mesh: Mesh,
  *,
  vocabulary: str,
  steps: int,
  saves: int,
  tokens: int,
  state_bytes: float,
) -> str:
  """Parameters, memory and disk of a run, for --dry_run."""
  count = _num_parameters(config)
  rows = (
    ("parameters", f"{count:,}"),
    ("vocabulary", vocabulary),
    ("steps to train", f"{steps:,} ({tokens:,} tokens)"),
    (
      "state per device",
      f"{human_bytes(_state_bytes(config, mesh, state_bytes))} (params, "
      "gradients, optimizer)",
    ),
    (
      "checkpoints to save",
      f"{saves}, {human_bytes((4 + state_bytes) * count)} each",
    ),
    ("mesh", ", ".join(f"{k}={v}" for k, v in mesh.shape.items())),
  )
  return "\n".join(f"{name:>20}: {value}" for name, value in rows)
