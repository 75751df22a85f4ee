"""Checks of a run's config against its devices, before anything is read."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from jaxmerge.config_reading import examine
from jaxmerge.data.mixture import tokenizer_problems
from jaxmerge.data.tokenizers.hugging_face import SMALLEST_VOCABULARY
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.errors import InputError, Problems
from jaxmerge.files import human_bytes
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.model.execution import PLAIN, Execution, choose
from jaxmerge.parallel.mesh import device_budget, make_mesh
from jaxmerge.parallel.rules import (
  BATCH_AXES,
  batch_shards,
  batch_share,
  shardings,
)
from jaxmerge.training import optimizer
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.plan_text import bytes_of_state
from jaxmerge.training.state_shardings import bytes_of
from jaxmerge.training.step import with_guard
from jaxmerge.training.trainer import Trainer

# What the sizes of a step follow from, beside the model and the mesh.
_SIZES = ("seq_len", "batch_size", "eval_batch_size", "step")


def check_config(
  given: Any, devices: Sequence[jax.Device] | None = None
) -> tuple[PretrainConfig, Trainer]:
  """A config, and the trainer that it asks for; refuses what is wrong.

  Args:
    given: a config as a file or a program gives it.
    devices: to train on, perhaps of a topology; None: those that there are.
  """
  config, told = examine(PretrainConfig, given)
  problems = Problems(told)
  if config is None:
    problems.check()
  assert config is not None
  right = partial(_are_right, told)
  mesh = model = trainer = None
  if right("mesh"):
    mesh = problems(lambda: make_mesh(**vars(config.mesh), devices=devices))
  if right("model", "data"):
    model = problems(lambda: _decoder_of(config))
    problems += tokenizer_problems(config.data)
  if right("scoring"):
    problems(lambda: config.scoring.items)
  if right("mesh", "model", *_SIZES):
    problems += _mesh_problems(config, mesh)
  execution = PLAIN
  if mesh and model and right(*_SIZES):
    problems += _loss_chunk_problems(config, mesh)
    execution = problems(partial(_execution, config, model, mesh)) or PLAIN
  if mesh and model and right("optimizer", "num_steps", *_SIZES):
    trainer = problems(partial(_trainer, config, model, mesh, execution))
  elif mesh and model:
    problems(lambda: shardings(abstract_decoder(model)[1], mesh))
  if trainer and devices is None:
    problems += _memory_problems(config, trainer)
  problems.check()
  assert trainer is not None
  return config, trainer


def _are_right(problems: Sequence[str], *names: str) -> bool:
  """Says whether nothing has been told of keys or sections of the config."""
  starts = tuple(f"config.{name}{end}" for name in names for end in " .")
  return not any(problem.startswith(starts) for problem in problems)


def _trainer(
  config: PretrainConfig,
  model: DecoderConfig,
  mesh: Mesh,
  execution: Execution,
) -> Trainer:
  built, schedule = optimizer.build(config.optimizer, config.num_steps)
  guarded = with_guard(built, config.step)
  return Trainer.build(
    model,
    mesh,
    guarded,
    schedule,
    config.step,
    execution,
    averages=config.averages,
  )


def _memory_problems(config: PretrainConfig, trainer: Trainer) -> list[str]:
  mesh = trainer.mesh
  limit = device_budget(config.memory_budget_gb)
  state = bytes_of_state(trainer)
  # One activation and its gradient; a step needs many more.
  targets = config.batch_size // config.step.accumulate * config.seq_len
  parts = batch_shards(mesh) * mesh.shape["context"]
  batch = 8 * trainer.config.hidden_size * targets / parts
  if state + batch <= limit:
    return _merging_memory_problems(config, trainer, state, limit)
  return [
    f"the run needs {human_bytes(state)} for parameters, gradients and "
    f"moments and {human_bytes(batch)} or more for a batch on each device, "
    f"of which {human_bytes(limit)} may be used; see config.memory_budget_gb"
  ]


def _merging_memory_problems(
  config: PretrainConfig, trainer: Trainer, state: int, limit: float
) -> list[str]:
  trees, params = config.merging.trees, trainer.abstract_state().params
  size = bytes_of(params).on_device
  # Between steps no gradient is held.
  needed = state + (trees - 1) * size
  if not trees or needed <= limit:
    return []
  return [
    f"config.merging needs {trees} trees of parameters beside the run's state "
    f"on each device, {human_bytes(needed)} in all, of which "
    f"{human_bytes(limit)} may be used; "
    "config.merging.how=uniform needs 2, whatever the window"
  ]


def _loss_chunk_problems(config: PretrainConfig, mesh: Mesh) -> list[str]:
  chunk, context = config.step.loss_chunk, mesh.shape["context"]
  if not chunk or not (config.seq_len % chunk or chunk % context):
    return []
  return [
    f"config.seq_len {config.seq_len} is not a multiple of "
    f"config.step.loss_chunk {chunk}, or that not of config.mesh.context "
    f"{context}"
  ]


def _execution(
  config: PretrainConfig, model: DecoderConfig, mesh: Mesh
) -> Execution:
  """The execution of a run's step; refuses an attention that cannot run."""
  step, length = config.step, config.seq_len
  if length % mesh.shape["context"]:
    return PLAIN  # told with the other sizes
  return choose(
    model,
    mesh,
    length=length,
    batch=config.batch_size // step.accumulate,
    attention=step.attention,
    remat=step.remat,
    loss_chunk=step.loss_chunk,
    logits=step.logits,
    document_mask=step.document_mask or config.data.packs_documents,
  )


def _mesh_problems(config: PretrainConfig, mesh: Mesh | None) -> Problems:
  """Sizes that axes do not divide; without a mesh, axes of a known size."""
  problems = Problems()
  sizes = mesh.shape if mesh is not None else vars(config.mesh)
  divided = {
    "seq_len": (config.seq_len, "context"),
    "model.num_attention_heads": (config.model.num_attention_heads, "tensor"),
    "model.num_key_value_heads": (config.model.num_key_value_heads, "tensor"),
  }
  problems += [
    f"config.{name} {size} is not a multiple of config.mesh.{axis} "
    f"{sizes[axis]}"
    for name, (size, axis) in divided.items()
    if sizes[axis] > 0 and size % sizes[axis]
  ]
  if mesh is not None:
    problems(lambda: batch_share(mesh))
    shards, parts = batch_shards(mesh), config.step.accumulate
    axes = " * ".join(BATCH_AXES)
    problems += [
      f"config.{name} {size} is not a multiple of {shards * times}: {axes} of "
      f"the mesh{' * config.step.accumulate' if times > 1 else ''}"
      for name, times in (("batch_size", parts), ("eval_batch_size", 1))
      if (size := getattr(config, name)) % (shards * times)
    ]
  return problems


def _decoder_of(config: PretrainConfig) -> DecoderConfig:
  """With the vocabulary asked for, of which a short text may give less."""
  data, size = config.data, config.data.vocab_size
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
  return DecoderConfig(vocab_size=size, **vars(config.model))
