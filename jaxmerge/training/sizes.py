"""The sizes of a run: its decoder, what fits a device, what it will write."""

import math

import jax
from jax.sharding import Mesh

from jaxmerge.data.config import DataConfig
from jaxmerge.data.tokenizers.hugging_face import SMALLEST_VOCABULARY
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.errors import InputError, check
from jaxmerge.files import human_bytes
from jaxmerge.model.config import DecoderConfig, ModelConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.mesh import device_budget
from jaxmerge.parallel.rules import batch_shards
from jaxmerge.training.loop import Plan


def decoder_of(model: ModelConfig, data: DataConfig) -> DecoderConfig:
  """The decoder of a run, with the vocabulary that its text is to have.

  A tokenizer trained on a short text may give fewer tokens than asked for.

  Raises:
    InputError: the vocabulary asked for is too small, or not the tokenizer's.
  """
  size = data.vocab_size
  if data.tokenizer_path:
    size = load_tokenizer(data.tokenizer_path).size
    if data.vocab_size not in (0, size):
      raise InputError(
        f"config.data.vocab_size is {data.vocab_size}, but the tokenizer of "
        f"config.data.tokenizer_path has {size} tokens; 0 takes what it has"
      )
  elif size < SMALLEST_VOCABULARY:
    raise InputError(
      f"config.data.vocab_size must be at least {SMALLEST_VOCABULARY} (256 "
      f"bytes and the end of text), got {size}; 0 goes with a "
      "config.data.tokenizer_path"
    )
  return DecoderConfig(vocab_size=size, **vars(model))


def check_sizes(
  model: DecoderConfig,
  mesh: Mesh,
  *,
  batch_size: int,
  eval_batch_size: int,
  seq_len: int,
  state_bytes: float,
  memory_budget_gb: float,
) -> None:
  """Refuses batches that the mesh cannot spread, and more than a device holds.

  Args:
    state_bytes: of the optimiser, for each parameter.
    memory_budget_gb: as for device_budget.
  """
  shards = batch_shards(mesh)
  sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
  problems = [
    f"config.{name} {size} is not a multiple of {shards} devices"
    for name, size in sizes.items()
    if size % shards
  ]
  limit = device_budget(memory_budget_gb)
  state = _state_bytes(model, mesh, state_bytes)
  # One activation and its gradient; a step needs many more.
  batch = 8 * model.hidden_size * batch_size * seq_len / shards
  if state + batch > limit:
    problems.append(
      f"the run needs {human_bytes(state)} for parameters, gradients and "
      f"moments and {human_bytes(batch)} or more for a batch on each device, "
      f"of which {human_bytes(limit)} may be used; see config.memory_budget_gb"
    )
  check(problems)


def _num_parameters(model: DecoderConfig) -> int:
  _, abstract = abstract_decoder(model)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))


def _state_bytes(model: DecoderConfig, mesh: Mesh, state_bytes: float) -> float:
  """Bytes on each device of parameters, gradients and the optimiser's state."""
  shards = mesh.shape["fsdp"] * mesh.shape["tensor"]
  return (8 + state_bytes) * _num_parameters(model) / shards


def plan_text(
  model: DecoderConfig,
  mesh: Mesh,
  plan: Plan,
  state_bytes: float,
  *,
  trains_tokenizer: bool,
) -> str:
  """Parameters, memory and disk of a run, for --dry_run."""
  count = _num_parameters(model)
  fewer = ", or what the text gives" if trains_tokenizer else ""
  state = human_bytes(_state_bytes(model, mesh, state_bytes))
  saves = -(-plan.num_steps // plan.save_every)
  tokens = plan.num_steps * plan.tokens_per_step
  rows = {
    "parameters": f"{count:,}",
    "vocabulary": f"{model.vocab_size:,} tokens{fewer}",
    "steps to train": f"{plan.num_steps:,} ({tokens:,} tokens)",
    "state per device": f"{state} (params, gradients, optimizer)",
    "checkpoints to save": (
      f"{saves}, {human_bytes((4 + state_bytes) * count)} each"
    ),
    "mesh": ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items()),
  }
  return "\n".join(f"{name:>20}: {value}" for name, value in rows.items())
