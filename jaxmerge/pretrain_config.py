"""The config of a run: its keys, what is wrong with it, what it asks for."""

import optax
from jax.sharding import Mesh
from ml_collections import config_dict

from jaxmerge import runner
from jaxmerge.data import sections
from jaxmerge.data.tokenizer import (
  SMALLEST_VOCABULARY,
  load_tokenizer,
  vocabulary_size,
)
from jaxmerge.errors import InputError, Problems
from jaxmerge.model.config import DecoderConfig, option_types
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.training import optimizer
from jaxmerge.training.trainer import (
  Trainer,
  batch_problems,
  memory_problems,
  plan_text,
)

_MODEL: runner.Schema = {
  "width": int,
  "depth": int,
  "num_heads": int,
  "num_kv_heads": int,
  "mlp_width": int,
  "rope_theta": float,
  "norm_eps": float,
  "tied": bool,
  "dtype": str,
  "vocab_multiple": int,
  "remat": bool,
}
SCHEMA: runner.Schema = {
  "seed": int,
  "num_steps": int,
  "batch_size": int,
  "seq_len": int,
  "log_every": int,
  "save_every": int,
  "validation_sequences": int,
  "eval_batch_size": int,
  "data": sections.SCHEMA,
  "model": _MODEL,
  "optimizer": {
    "learning_rate": float,
    "warmup_steps": int,
    "b1": float,
    "b2": float,
    "weight_decay": float,
    "clip_norm": float,
  },
  "mesh": {"data": int, "fsdp": int, "tensor": int},
}
# Steps are counted in 32 bits on the devices.
_LARGEST = 2**31 - 1
_POSITIVE = [
  "num_steps",
  "batch_size",
  "seq_len",
  "log_every",
  "save_every",
  "validation_sequences",
  "eval_batch_size",
]


def check_config(config: config_dict.ConfigDict) -> Mesh:
  """Refuses what is wrong with a config before anything is read.

  Returns:
    The mesh that it asks for.
  """
  runner.check_config(config, _schema(config))
  rate, warmup = config.optimizer.learning_rate, config.optimizer.warmup_steps
  counts = {key: config[key] for key in _POSITIVE}
  problems = Problems(
    [
      f"config.{key} must be from 1 to {_LARGEST}, got {count}"
      for key, count in counts.items()
      if not 1 <= count <= _LARGEST
    ]
    + optimizer.rate_problems(rate, warmup)
  )
  if warmup > _LARGEST:
    problems.add(f"config.optimizer.warmup_steps {warmup} is too large")
  if not 0 <= config.seed < 2**32:
    problems.add(f"config.seed must be in [0, 2**32), got {config.seed}")
  mesh = problems(lambda: make_mesh(**config.mesh))
  model = problems(lambda: model_of(config))
  problems(lambda: optimizer_of(config))
  problems.check()
  assert mesh is not None
  assert model is not None
  for name in ("batch_size", "eval_batch_size"):
    problems.extend(batch_problems(name, config[name], mesh))
  tokens = config.batch_size * config.seq_len
  problems.extend(memory_problems(model, mesh, tokens))
  problems.check()
  Trainer.build(model, mesh, *optimizer_of(config))  # sizes that do not shard
  return mesh


def model_of(config: config_dict.ConfigDict) -> DecoderConfig:
  """With the vocabulary that is asked for."""
  size = _vocabulary_size(config.data)
  return DecoderConfig(vocab_size=size, **config.model)


def optimizer_of(
  config: config_dict.ConfigDict,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimiser that a config asks for, and its learning-rate schedule."""
  knobs = config.optimizer
  schedule = optimizer.warmup_constant(knobs.learning_rate, knobs.warmup_steps)
  adamw = optimizer.adamw(
    schedule,
    b1=knobs.b1,
    b2=knobs.b2,
    weight_decay=knobs.weight_decay,
    clip_norm=knobs.clip_norm,
  )
  return adamw, schedule


def _schema(config: config_dict.ConfigDict) -> runner.Schema:
  """With the options of the model that the config names; a Llama has none."""
  if "model" not in config or not isinstance(config.model, type(config)):
    return SCHEMA
  options = {k: t for k, t in option_types().items() if k in config.model}
  return {**SCHEMA, "model": {**_MODEL, **options}}


def _vocabulary_size(data: config_dict.ConfigDict) -> int:
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
  size = vocabulary_size(load_tokenizer(data.tokenizer_path))
  if data.vocab_size not in (0, size):
    raise InputError(
      f"config.data.vocab_size is {data.vocab_size}, but the tokenizer of "
      f"config.data.tokenizer_path has {size} tokens; 0 takes what it has"
    )
  return size


def plan(config: config_dict.ConfigDict, mesh: Mesh) -> str:
  model = model_of(config)
  fewer = "" if config.data.tokenizer_path else ", or what the text gives"
  return plan_text(
    model,
    mesh,
    vocabulary=f"{model.vocab_size:,} tokens{fewer}",
    steps=config.num_steps,
    saves=-(-config.num_steps // config.save_every),
    tokens=config.num_steps * config.batch_size * config.seq_len,
  )
