"""The config of a run: its keys, what is wrong with it, what it asks for."""

from typing import Any

from jax.sharding import Mesh

from jaxmerge.config_reading import read
from jaxmerge.data.config import DataConfig
from jaxmerge.data.tokenizers.hugging_face import SMALLEST_VOCABULARY
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.errors import InputError, Problems
from jaxmerge.model.config import DecoderConfig
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.training import optimizer
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.trainer import (
  Trainer,
  batch_problems,
  memory_problems,
  plan_text,
)


def check_config(given: Any) -> tuple[PretrainConfig, Mesh]:
  """Refuses what is wrong with a config before anything is read.

  Args:
    given: a ConfigDict, or a PretrainConfig.

  Returns:
    The config, and the mesh that it asks for.
  """
  config = read(PretrainConfig, given)
  problems = Problems()
  mesh = problems(lambda: make_mesh(**vars(config.mesh)))
  model = problems(lambda: model_of(config))
  problems.check()
  assert mesh is not None
  assert model is not None
  for name in ("batch_size", "eval_batch_size"):
    problems.extend(batch_problems(name, getattr(config, name), mesh))
  tokens = config.batch_size * config.seq_len
  problems.extend(
    memory_problems(
      model,
      mesh,
      tokens,
      config.optimizer.state_bytes,
      config.memory_budget_gb,
    )
  )
  problems.check()
  Trainer.build(model, mesh, *optimizer_of(config))  # sizes that do not shard
  return config, mesh


def model_of(config: PretrainConfig, vocab_size: int = 0) -> DecoderConfig:
  """The decoder, with the vocabulary that is asked for or the one given."""
  size = vocab_size or _vocabulary_size(config.data)
  return DecoderConfig(vocab_size=size, **vars(config.model))


def optimizer_of(config: PretrainConfig) -> Any:
  """The optimiser that a config asks for, and its learning-rate schedule."""
  return optimizer.build(config.optimizer, config.num_steps)


def _vocabulary_size(data: DataConfig) -> int:
  """Of the tokenizer that is given, or of the one that will be trained.

  A short text may give fewer tokens than asked for.
  """
  if not data.tokenizer_path:
    if data.vocab_size < SMALLEST_VOCABULARY:
      raise InputError(
        f"config.data.vocab_size must be at least {SMALLEST_VOCABULARY} (256 "
        f"bytes and the end of text), got {data.vocab_size}; 0 goes with a "
        "config.data.tokenizer_path"
      )
    return data.vocab_size
  size = load_tokenizer(data.tokenizer_path).size
  if data.vocab_size not in (0, size):
    raise InputError(
      f"config.data.vocab_size is {data.vocab_size}, but the tokenizer of "
      f"config.data.tokenizer_path has {size} tokens; 0 takes what it has"
    )
  return size


def plan(config: PretrainConfig, mesh: Mesh) -> str:
  model = model_of(config)
  fewer = "" if config.data.tokenizer_path else ", or what the text gives"
  return plan_text(
    model,
    mesh,
    vocabulary=f"{model.vocab_size:,} tokens{fewer}",
    steps=config.num_steps,
    saves=-(-config.num_steps // config.save_every),
    tokens=config.num_steps * config.batch_size * config.seq_len,
    state_bytes=config.optimizer.state_bytes,
  )
