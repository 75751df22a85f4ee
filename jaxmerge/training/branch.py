"""A run that goes on from a step of another run, with all of its state.

Its parameters, optimiser state, step number and place in the data are those of
its parent, which must be a step of a run over the same data in the same order.
"""

from collections.abc import Mapping
from typing import Any

from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.errors import grouped
from jaxmerge.formats.records.metadata import (
  Metadata,
  canonical_json,
  hash_text,
)
from jaxmerge.parallel.rules import named_leaves
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.guard import GuardState

# What decides of the order of the data, beside the tokens.
_ORDER = ("seq_len", "batch_size", "seed")
_ITEM = "opt_state"
# A leaf of a guard's state; none of an optimiser has its name.
_GUARD = "skipped"


def data_order(config: PretrainConfig) -> dict[str, Any]:
  """Keys that metadata must say of a run for another one to branch from it."""
  return {name: getattr(config, name) for name in _ORDER}


def identity(parent: Checkpoint) -> str:
  """A hash of all that a branch takes from its parent."""
  metadata = parent.metadata
  taken = [metadata.leaves, metadata.step, metadata.iterator]
  return hash_text(canonical_json(taken))


def branch_problems(
  parent: Checkpoint, config: PretrainConfig, opt_state: Any, content: str
) -> list[str]:
  """Says why a run cannot branch from a checkpoint of the same model.

  Args:
    opt_state: shapes of the run's, for a model as the checkpoint's; None where
      the models differ.
    content: hash of the corpus's text, "" if not known.
  """
  metadata, name = parent.metadata, f"--init_from {parent.name}"
  if metadata.kind != "trained" or _ITEM not in metadata.leaves:
    return [
      f"{name} has no optimiser state and no place in the data: a branch needs "
      "a step of a run; without config.branch a run starts from the parameters "
      "alone"
    ]
  problems = []
  if config.num_steps <= metadata.step:
    problems.append(
      f"config.num_steps {config.num_steps} must be more than the step "
      f"{metadata.step} of {name}: a branch counts from the beginning of the "
      "run that it leaves"
    )
  order = _order_of(metadata)
  problems += [
    f"{name}: config.{key} was {order[key]}, is now {value}; its place in the "
    "data is of another order"
    for key, value in data_order(config).items()
    if order[key] not in (None, value)
  ]
  before = metadata.data.get("content") or content
  if content and before != content:
    problems.append(f"{name} is of another corpus, or its text has changed")
  return problems + _state_problems(name, metadata, config, opt_state)


def corpus_problems(parent: Checkpoint, corpus: str) -> list[str]:
  """As branch_problems, of the identity of the tokens."""
  if parent.metadata.corpus == corpus:
    return []
  return [
    f"--init_from {parent.name} is of other tokens: another corpus, or another "
    "part of it"
  ]


def _order_of(metadata: Metadata) -> dict[str, Any]:
  """The parent's, as far as it is known; the batch size from its tokens."""
  order = {name: metadata.data.get(name) for name in _ORDER}
  if order["batch_size"] is None and order["seq_len"] and metadata.step:
    tokens_per_step = metadata.tokens // metadata.step
    order["batch_size"] = tokens_per_step // order["seq_len"]
  return order


def _unguarded(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """The optimiser's own state by name, with or without a guard around it."""
  return {
    name.removeprefix("inner/"): leaf
    for name, leaf in leaves.items()
    if name not in GuardState._fields
  }


def _state_problems(
  name: str, metadata: Metadata, config: PretrainConfig, opt_state: Any
) -> list[str]:
  if opt_state is None:
    return []
  kind = f"config.optimizer.name={config.optimizer.name}"
  mine, saved = named_leaves(opt_state), metadata.leaves[_ITEM]
  others = []
  if (_GUARD in mine) != (_GUARD in saved):
    wanted = "1 or more" if _GUARD in saved else "0"
    others.append(
      f"{name}: config.step.max_skipped was {wanted}, is now "
      f"{config.step.max_skipped}; its optimiser state is of that"
    )
  mine, saved = _unguarded(mine), _unguarded(saved)
  others += grouped(
    f"{name}: its optimiser state is of another kind than {kind} with these "
    f"knobs has: {leaf} is in only one of the two"
    for leaf in sorted(mine.keys() ^ saved.keys())
  )
  return others + grouped(
    f"{name}: its optimiser state has {leaf} of {saved[leaf]['shape']} "
    f"{saved[leaf]['dtype']}, {kind} of {list(found.shape)} {found.dtype}"
    for leaf, found in mine.items()
    if leaf in saved
    and (
      [*saved[leaf]["shape"]] != [*found.shape]
      or saved[leaf]["dtype"] != str(found.dtype)
    )
  )
