"""Checks of a run before a text is tokenized: where it starts, or goes on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxmerge.checkpoints import inputs, merged
from jaxmerge.checkpoints.inputs import HOW_IT_RUNS, Checkpoint
from jaxmerge.checkpoints.model_inputs import open_models
from jaxmerge.checkpoints.outputs import check_place
from jaxmerge.data.config import DataConfig
from jaxmerge.data.corpora import content_hash
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import InputError, Problems
from jaxmerge.files import check_can_make
from jaxmerge.formats.records.metadata import Metadata, read_metadata
from jaxmerge.model.config import DecoderConfig
from jaxmerge.training import run
from jaxmerge.training.metrics import check_saved


def check_start(
  workdir: epath.Path,
  init_from: str,
  *,
  config: Mapping[str, Any],
  data: DataConfig,
  model: DecoderConfig,
) -> tuple[Checkpoint | None, dict[str, Any]]:
  """Refuses what can be known before a text is tokenized; writes nothing.

  Args:
    workdir: may not be there yet.
    init_from: an input, "" for random parameters.
    config: of the run, flat, for its identity.
    model: of the run, with the vocabulary that is asked for.

  Returns:
    The checkpoint to start from, and what is known of the run's identity.
  """
  problems = Problems()
  problems(lambda: check_can_make(workdir))
  problems(lambda: check_place(workdir))
  opened = problems(lambda: open_models([init_from])) if init_from else []
  parent = opened[0] if opened else None
  path = data.tokenizer_path
  tokenizer = load_tokenizer(path) if path else None
  if parent is not None:
    problems.extend(start_problems(parent, model, tokenizer))
  content = problems(lambda: content_hash(data))
  problems.check()
  parts = run.known_parts(
    config,
    content=content or "",
    parent=merged.identity(parent) if parent else "",
    tokenizer=tokenizer.hash if tokenizer else "",
  )
  run.check_workdir(workdir, parts)
  if tokenizer is not None:
    run.check_tokenizer(workdir, tokenizer)
  check_trail(workdir)
  return parent, parts


def start_problems(
  checkpoint: Checkpoint,
  config: DecoderConfig,
  tokenizer: Tokenizer | None = None,
) -> list[str]:
  """Says why a run cannot start from the parameters of a checkpoint.

  Args:
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


def check_trail(workdir: epath.PathLike) -> None:
  """Refuses a run that cannot go on from its last step; reads no array."""
  steps = inputs.steps_in(workdir)
  if steps:
    path = inputs.step_path(workdir, steps[-1])
    metadata = read_metadata(path)
    check_resumable(path, metadata)
    check_saved(workdir, steps[-1], metadata.metrics)


def check_resumable(
  path: epath.Path, metadata: Metadata, run_id: str = ""
) -> None:
  """Refuses a step that the run cannot go on from.

  Args:
    run_id: of the run, "" if not known yet.
  """
  if metadata.kind != "trained":
    raise InputError(
      f"{path} is {metadata.kind}, not trained: a run cannot resume from it "
      "(it may be an --init_from)"
    )
  if run_id and metadata.run_id != run_id:
    raise InputError(f"{path} is of another run ({metadata.run_id})")
