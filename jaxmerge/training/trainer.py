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

from jaxmerge.checkpoints.metadata import read_metadata
from jaxmerge.checkpoints.store import restore_params, restore_training
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.errors import InputError, check
from jaxmerge.files import human_bytes
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.rules import batch_shards
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

  def start_from(self, checkpoint: Checkpoint, tokenizer: str) -> TrainState:
    """Step 0 from the parameters of a checkpoint, trained or merged.

    Args:
      checkpoint: where the parameters lie.
      tokenizer: the run's tokenizer.json.

    Raises:
      InputError: the checkpoint's tree or tokenizer is not this run's.
    """
    saved = dataclasses.asdict(
      DecoderConfig.from_dict(checkpoint.metadata.model)
    )
    mine = dataclasses.asdict(self.config)
    problems = [
      f"--init_from {checkpoint.name}: model.{key} is {saved[key]!r}, "
      f"here {mine[key]!r}"
      for key in mine
      if key not in _HOW_IT_RUNS and saved[key] != mine[key]
    ]
    theirs = checkpoint.metadata.tokenizer
    if theirs and theirs != tokenizer:
      problems.append(
        f"--init_from {checkpoint.name}: its tokenizer is another one; give it "
        "as --config.data.tokenizer_path (a run keeps its own as "
        "tokenizer.json)"
      )
    check(problems)
    params = restore_params(checkpoint.path, self.shardings.params)
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
    if metadata.kind != "trained":
      raise InputError(
        f"{path} is {metadata.kind}, not trained: a run cannot resume from it "
        "(it may be an --init_from)"
      )
    if metadata.run_id != run_id:
      raise InputError(f"{path} is of another run ({metadata.run_id})")
    params = restore_params(path, self.shardings.params)
    opt_state = restore_training(
      path,
      opt_state=abstract_opt_state(self.config, self.optimizer, self.shardings),
      iterator=iterator,
    )
    return resumed_state(params, opt_state, metadata.step, self.shardings)


# Keys of a model's config that do not change what its parameters mean.
_HOW_IT_RUNS = ("dtype", "remat")


def batch_problems(name: str, size: int, mesh: Mesh) -> list[str]:
  """Why a batch of `size` sequences cannot be spread over the mesh."""
  shards = batch_shards(mesh)
  if size % shards:
    return [f"config.{name} {size} is not a multiple of {shards} devices"]
  return []


def plan_text(
  config: DecoderConfig, mesh: Mesh, steps: int, saves: int, tokens: int
) -> str:
  """Parameters, memory and disk of a run, for --dry_run."""
  _, abstract = abstract_decoder(config)
  leaves = jax.tree.leaves(abstract)
  count = sum(math.prod(leaf.shape) for leaf in leaves)
  shards = mesh.shape["fsdp"] * mesh.shape["tensor"]
  rows = (
    ("parameters", f"{count:,}"),
    ("steps to train", f"{steps:,} ({tokens:,} tokens)"),
    (
      "state per device",
      f"{human_bytes(16 * count / shards)} (params, gradients, two moments)",
    ),
    ("checkpoints to save", f"{saves}, {human_bytes(12 * count)} each"),
    ("mesh", ", ".join(f"{k}={v}" for k, v in mesh.shape.items())),
  )
  return "\n".join(f"{name:>20}: {value}" for name, value in rows)
