"""The order of inputs in training, where anything says it."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from jaxmerge.checkpoints.inputs import TRAINER, Checkpoint

_NUMBER = re.compile(r"\d+")


class Order(NamedTuple):
  """K inputs as training made them.

  Attributes:
    oldest_first_K: their indices; as typed where nothing says their order.
    steps_K: of each input as typed; empty where nothing says them.
    why: says what the order goes by.
  """

  oldest_first_K: list[int]
  steps_K: list[int]
  why: str


def find_order(checkpoints: Sequence[Checkpoint]) -> Order:
  """Sorts by the steps that the inputs record, else by numbers in their names.

  The typed order counts where two inputs are of one step, where only some
  record a step, and where records and names contradict each other.
  """
  recorded = [_recorded_steps(checkpoint) for checkpoint in checkpoints]
  named = _numbers([checkpoint.path for checkpoint in checkpoints])
  distinct = [column for column in named if len({*column}) == len(column)]
  as_typed = list(range(len(checkpoints)))
  if any(len(steps) > 1 for steps in recorded):
    return Order(as_typed, [], f"jaxmerge.json and {TRAINER} contradict")
  if all(recorded):
    steps = [min(found) for found in recorded]
    by = "by the steps that they record"
  elif any(recorded):
    return Order(as_typed, [], "only some of the inputs record a step")
  elif distinct:
    steps, by = distinct[-1], "by the numbers in their names"
  else:
    return Order(as_typed, [], "nothing says their steps")
  if len({*steps}) < len(steps):
    return Order(as_typed, [], f"two of them are of the same step: {steps}")
  order = sorted(as_typed, key=steps.__getitem__)
  if not all(_rises(column, order) for column in named):
    return Order(as_typed, [], "their steps and their names contradict")
  return Order(order, steps, by)


def describe_order(checkpoints: Sequence[Checkpoint], order: Order) -> str:
  """A line for the user; empty where the typed order is the known one."""
  typed = list(range(len(checkpoints)))
  sorted_ = [checkpoints[k].name for k in order.oldest_first_K]
  if order.oldest_first_K != typed:
    return f"inputs taken oldest first, {order.why}: {', '.join(sorted_)}"
  if order.why.startswith("by "):
    return ""
  return (
    f"inputs taken as typed, oldest first, as {order.why}: {', '.join(sorted_)}"
  )


def latest(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
  return checkpoints[find_order(checkpoints).oldest_first_K[-1]]


def _recorded_steps(checkpoint: Checkpoint) -> set[int]:
  """The step by its metadata and by the trainer that saved it."""
  metadata = checkpoint.metadata
  found = {metadata.step} if metadata.step or metadata.run_id else set()
  if checkpoint.trainer_step is not None:
    found |= {checkpoint.trainer_step}
  return found


def _numbers(paths: Sequence[epath.Path]) -> list[list[int]]:
  """Columns of the numbers in which otherwise equal names differ.

  `step500-tokens2B` and `step900-tokens4B` give [500, 900] and [2, 4]. Names
  are those of the directories, or of the first ones above that differ.
  """
  while len({path.name for path in paths}) == 1 and paths[0] != paths[0].parent:
    paths = [path.parent for path in paths]
  names = [path.name for path in paths]
  if len({_NUMBER.sub("#", name) for name in names}) > 1:
    return []
  rows = [map(int, _NUMBER.findall(name)) for name in names]
  columns = [list(column) for column in zip(*rows, strict=True)]
  return [column for column in columns if len({*column}) > 1]


def _rises(column: Sequence[int], order: Sequence[int]) -> bool:
  numbers = [column[k] for k in order]
  return numbers == sorted(numbers)
