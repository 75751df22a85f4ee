"""A run that goes on from a step of another run, with all of its state.

Its parameters, optimiser state, step number and place in the data are those of
its parent, which must be a step of a run over the same data in the same order,
or a merge of such steps: then it goes on from the newest of them (PMA-init,
arXiv 2505.12082).
"""

from collections.abc import Mapping
from typing import Any

from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.data.config import DataConfig, from_metadata
from jaxmerge.errors import Problems, grouped
from jaxmerge.formats.records.metadata import (
  Metadata,
  canonical_json,
  hash_text,
)
from jaxmerge.merging.trail import mean_of
from jaxmerge.parallel.rules import named_leaves
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.guard import GuardState
from jaxmerge.training.sources import (
  MEAN,
  MERGED,
  NEWEST,
  TRAINED,
  ZERO,
  sources_of,
)
from jaxmerge.training.step import TrainState
from jaxmerge.training.trainer import Trainer

# What decides of the order of the data, beside the tokens.
_ORDER = ("seq_len", "batch_size", "seed")
_ITEM = "opt_state"
# A leaf of a guard's state; none of an optimiser has its name.
_GUARD = "skipped"


def data_order(config: PretrainConfig) -> dict[str, Any]:
  """Keys that metadata must say of a run for another one to branch from it."""
  return {name: getattr(config, name) for name in _ORDER}


def identity(parent: Checkpoint, state: str = NEWEST) -> str:
  """A hash of all that a branch takes from its parent; see sources.STATES."""
  metadata = parent.metadata
  place = metadata.iterator or metadata.position
  taken = [metadata.leaves, metadata.step, place]
  if metadata.kind == MERGED or state == ZERO:
    sources = sources_of(parent, state)
    states = [c.metadata.leaves[_ITEM] for c in sources.checkpoints]
    taken += [state, states, list(sources.weights)]
  return hash_text(canonical_json(taken))


def start(parent: Checkpoint, state: str, trainer: Trainer) -> TrainState:
  """The state that a branch begins with, at the step of its parent.

  Raises:
    InputError: a checkpoint is damaged.
  """
  metadata = parent.metadata
  sources = sources_of(parent, state)
  if state == ZERO:
    return trainer.start_from(parent, metadata.step)
  paths = [checkpoint.path for checkpoint in sources.checkpoints]
  found = trainer.resume(paths[-1], metadata.step)
  if state == MEAN:
    target = trainer.abstract_state().opt_state
    mean = mean_of(paths, _ITEM, target, sources.weights)
    found = found._replace(opt_state=mean)
  if metadata.kind == MERGED:
    params = trainer.params_of(parent)
    # A merge has no averages: they begin at its parameters.
    averages = trainer.averages_of(params)
    found = found._replace(params=params, averages=averages)
  return found


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
  lacks_state = config.branch_state != ZERO and _ITEM not in metadata.leaves
  if metadata.kind != MERGED and (metadata.kind != TRAINED or lacks_state):
    return [
      f"{name} has no optimiser state and no place in the data: a branch needs "
      "a step of a run, or a merge of such steps; without config.branch a run "
      "starts from the parameters alone"
    ]
  problems = Problems()
  sources = problems(lambda: sources_of(parent, config.branch_state))
  if config.num_steps <= metadata.step:
    problems.add(
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
  was, now = _mixing(from_metadata(metadata.data)), _mixing(config.data)
  problems += [
    f"{name}: config.data.{key} was {was.get(key)!r}, is now {now.get(key)!r}; "
    "its place in the data is of another order"
    for key in sorted(was.keys() | now.keys())
    if was.get(key) != now.get(key)
  ]
  text = metadata.data.get("content") or content
  if content and text != content:
    problems.add(f"{name} is of another corpus, or its text has changed")
  if sources and sources.checkpoints:  # all of one run
    newest = sources.checkpoints[-1].metadata
    problems += _state_problems(name, newest, config, opt_state)
  return problems.found


def corpus_problems(parent: Checkpoint, corpus: str) -> list[str]:
  """As branch_problems, of the identity of the tokens."""
  if parent.metadata.corpus == corpus:
    return []
  return [
    f"--init_from {parent.name} is of other tokens: another corpus, or another "
    "part of it"
  ]


def _mixing(data: DataConfig) -> dict[str, Any]:
  """Keys that decide of the order of a corpus's windows."""
  weights = {
    f"mixture.{k}.weight": part.weight for k, part in data.mixture.items()
  }
  return {"packing": data.packing, **weights}


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
