"""Checks of a run before a text is tokenized: sizes, where it starts."""

import dataclasses
import math
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from jaxmerge.checkpoints import inputs, merged
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.model_differences import HOW_IT_RUNS
from jaxmerge.checkpoints.model_inputs import open_models
from jaxmerge.checkpoints.outputs import check_place
from jaxmerge.config_fields import to_flat
from jaxmerge.config_reading import read
from jaxmerge.data.corpora import content_hash
from jaxmerge.data.tokenizers.hugging_face import SMALLEST_VOCABULARY
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import InputError, Problems
from jaxmerge.files import check_can_make, human_bytes
from jaxmerge.formats.records.metadata import Metadata, read_metadata
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.mesh import device_budget, make_mesh
from jaxmerge.parallel.rules import batch_shards
from jaxmerge.reading import read_file
from jaxmerge.training import optimizer, run
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.loop import Plan
from jaxmerge.training.metrics import check_saved
from jaxmerge.training.trainer import Trainer


def check_config(given: Any) -> tuple[PretrainConfig, Trainer]:
  """A config, and the trainer that it asks for; refuses what is wrong."""
  config = read(PretrainConfig, given)
  problems = Problems()
  mesh = problems(lambda: make_mesh(**vars(config.mesh)))
  model = problems(lambda: _decoder_of(config))
  problems.check()
  assert mesh is not None
  assert model is not None
  shards = batch_shards(mesh)
  problems += [
    f"config.{name} {size} is not a multiple of {shards} devices"
    for name in ("batch_size", "eval_batch_size")
    if (size := getattr(config, name)) % shards
  ]
  limit = device_budget(config.memory_budget_gb)
  state = _state_bytes(model, mesh, config.optimizer.state_bytes)
  # One activation and its gradient; a step needs many more.
  sequences = config.batch_size / shards
  batch = 8 * model.hidden_size * sequences * config.seq_len
  if state + batch > limit:
    problems.add(
      f"the run needs {human_bytes(state)} for parameters, gradients and "
      f"moments and {human_bytes(batch)} or more for a batch on each device, "
      f"of which {human_bytes(limit)} may be used; see config.memory_budget_gb"
    )
  problems.check()
  built = optimizer.build(config.optimizer, config.num_steps)
  return config, Trainer.build(model, mesh, *built)


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


def _num_parameters(model: DecoderConfig) -> int:
  _, abstract = abstract_decoder(model)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))


def _state_bytes(model: DecoderConfig, mesh: Mesh, state_bytes: float) -> float:
  """Bytes on each device of parameters, gradients and the optimiser's state."""
  shards = mesh.shape["fsdp"] * mesh.shape["tensor"]
  return (8 + state_bytes) * _num_parameters(model) / shards


def plan_text(
  trainer: Trainer, plan: Plan, state_bytes: float, trains_tokenizer: bool
) -> str:
  """Parameters, memory and disk of a run, for --dry_run."""
  model, mesh = trainer.config, trainer.mesh
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


def check_start(
  workdir: epath.Path,
  init_from: str,
  config: PretrainConfig,
  model: DecoderConfig,
) -> tuple[Checkpoint | None, dict[str, Any]]:
  """Refuses what can be known before a text is tokenized; writes nothing.

  Args:
    init_from: an input, "" for random parameters.
    model: of the run, with the vocabulary that is asked for.

  Returns:
    The checkpoint to start from, and what is known of the run's identity.
  """
  problems = Problems()
  problems(lambda: check_can_make(workdir))
  problems(lambda: check_place(workdir))
  opened = problems(lambda: open_models([init_from])) if init_from else []
  parent = opened[0] if opened else None
  path = config.data.tokenizer_path
  tokenizer = load_tokenizer(path) if path else None
  if parent is not None:
    problems.extend(start_problems(parent, model, tokenizer))
  content = problems(lambda: content_hash(config.data))
  problems.check()
  parts = run.known_parts(
    to_flat(config),
    content=content or "",
    parent=merged.identity(parent) if parent else "",
    tokenizer=tokenizer.hash if tokenizer else "",
  )
  run.check_workdir(workdir, parts, config.data)
  if tokenizer is not None:
    saved = workdir / tokenizer.file_name
    if saved.exists() and read_file(saved) != tokenizer.content:
      raise InputError(
        f"{workdir} is the workdir of another run: its {saved.name} is not "
        "that of config.data.tokenizer_path"
      )
  for step in inputs.steps_in(workdir)[-1:]:  # reads no array
    metadata = read_metadata(inputs.step_path(workdir, step))
    run.check_resumable(inputs.step_path(workdir, step), metadata)
    check_saved(workdir, step, metadata.metrics)
  return parent, parts


def start_problems(
  checkpoint: Checkpoint,
  config: DecoderConfig,
  tokenizer: Tokenizer | None = None,
) -> list[str]:
  """Says why a run cannot start from the parameters of a checkpoint.

  The tokenizer is the run's; None while it is not known, and with it the size
  of the vocabulary.
  """
  name = f"--init_from {checkpoint.name}"
  saved = dataclasses.asdict(DecoderConfig.from_dict(checkpoint.metadata.model))
  mine = dataclasses.asdict(config)
  unknown = () if tokenizer else ("vocab_size",)
  problems = [
    f"{name}: model.{key} is {saved[key]!r}, here {mine[key]!r}"
    for key in mine
    if key not in (*HOW_IT_RUNS, *unknown) and saved[key] != mine[key]
  ]
  if tokenizer and _has_other_tokenizer(checkpoint.metadata, tokenizer):
    problems.append(
      f"{name}: its tokenizer is another one; give it as "
      "--config.data.tokenizer_path (a run keeps its own as tokenizer.json or "
      "tokenizer.model)"
    )
  return problems


def _has_other_tokenizer(metadata: Metadata, tokenizer: Tokenizer) -> bool:
  """Compares the file of the same kind, or else the names of all ids."""
  is_other = False
  for kept in metadata.tokenizers():
    if kept.file_name == tokenizer.file_name:
      return kept.hash != tokenizer.hash
    is_other = kept.vocabulary != tokenizer.vocabulary
  return is_other
