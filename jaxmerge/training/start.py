"""Checks of a run before a text is tokenized: where it starts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from jaxmerge.checkpoints import inputs, merged, store
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.model_differences import HOW_IT_RUNS
from jaxmerge.checkpoints.model_inputs import open_models
from jaxmerge.checkpoints.outputs import check_place
from jaxmerge.config_fields import to_flat
from jaxmerge.data.mixture import content_hash
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import InputError, Problems
from jaxmerge.files import check_can_make
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.model.config import DecoderConfig
from jaxmerge.reading import read_file
from jaxmerge.training import branch, resuming, run
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.keep import room_problems
from jaxmerge.training.metrics import check_saved
from jaxmerge.training.state_shardings import bytes_of
from jaxmerge.training.trainer import Trainer


def check_start(
  workdir: epath.Path,
  init_from: str,
  config: PretrainConfig,
  trainer: Trainer,
  *,
  tell: Callable[[str], None] = lambda text: None,
  runs_here: bool = True,
) -> tuple[Checkpoint | None, dict[str, Any]]:
  """Refuses what can be known before a text is tokenized; writes nothing.

  Args:
    init_from: an input, "" for random parameters.
    trainer: of the run, with the vocabulary that is asked for.
    tell: gets a line for each step that the run will set aside.
    runs_here: on this machine, whose disk must have room for it.

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
  content = problems(lambda: content_hash(config.data)) or ""
  if config.branch and not init_from:
    problems.add("config.branch needs an --init_from to branch off from")
  if parent is not None:
    differ = start_problems(parent, trainer.config, tokenizer)
    problems.extend(differ)
    if config.branch:
      problems += _branch_problems(parent, config, trainer, content, differ)
  start = parent.metadata.step if parent and config.branch else 0
  rules = problems(lambda: config.keep_rules(start))
  if rules and runs_here:
    size = bytes_of(trainer.abstract_items()).in_total
    there, span = inputs.steps_in(workdir), config.span(start)
    problems += room_problems(workdir, rules, span, there, size, config.reads)
  problems.check()
  known: dict[str, Any] = {"parent": ""}
  if parent is not None and config.branch:
    named = branch.identity(parent, config.branch_state)
    known = {"parent": named, "start": start}
  elif parent is not None:
    known = {"parent": merged.identity(parent)}
  parts = run.known_parts(
    to_flat(config),
    content=content,
    tokenizer=tokenizer.hash if tokenizer else "",
    **known,
  )
  run.check_workdir(workdir, parts, config.data)
  if tokenizer is not None:
    saved = workdir / tokenizer.file_name
    if saved.exists() and read_file(saved) != tokenizer.content:
      raise InputError(
        f"{workdir} is the workdir of another run: its {saved.name} is not "
        "that of config.data.tokenizer_path"
      )
  if steps := inputs.steps_in(workdir):  # reads no array
    paths = {step: inputs.step_path(workdir, step) for step in steps}
    (step, metadata), damaged = resuming.newest_whole(
      steps, lambda step: (step, store.check_step(paths[step]))
    )
    for problem in damaged:
      tell(f"{problem.said}; the run sets it aside")
    run.check_resumable(paths[step], metadata)
    check_saved(workdir, step, metadata.metrics, parts["start"])
  return parent, parts


def _branch_problems(
  parent: Checkpoint,
  config: PretrainConfig,
  trainer: Trainer,
  content: str,
  differ: Sequence[str],
) -> list[str]:
  """As branch_problems; `differ` is what start_problems found."""
  opt_state = None
  if not differ:  # of as many tokens: the run's are perhaps not known yet
    size = parent.metadata.model["vocab_size"]
    opt_state = trainer.with_tokenizer(size, 0).abstract_state().opt_state
  return branch.branch_problems(parent, config, opt_state, content)


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
