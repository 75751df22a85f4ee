"""Which items are searched on and which are reported on.

As with held-out text (data/splits.py), the hash of a cluster's name decides, so
that adding or removing others moves none.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jaxmerge.errors import InputError, Problems
from jaxmerge.evaluation.tasks.task import ChoiceItem

_SALT = b"jaxmerge items 1:"
_FEWEST = 2  # clusters that give a standard error


class Splits(NamedTuple):
  """Items without a cluster or a hash in common, in the order of their hashes.

  So the first ones are a random sample of a split.

  Attributes:
    left_out: items whose question and choices the other split has already.
  """

  search: tuple[ChoiceItem, ...]
  report: tuple[ChoiceItem, ...]
  left_out: int


def split_tasks(
  items: Mapping[str, Sequence[ChoiceItem]],
) -> dict[str, Splits]:
  """Shares out the items of each task; no two tasks ask the same in both.

  Raises:
    InputError: as split_items, names each such task.
  """
  first: dict[str, bool] = {}
  problems = Problems()
  found = {}
  for name, of_task in items.items():
    try:
      found[name] = split_items(of_task, first=first)
    except InputError as error:
      problems += [f"{name}: {problem}" for problem in error.problems]
  problems.check()
  return found


def split_items(
  items: Sequence[ChoiceItem],
  search: float = 0.5,
  first: dict[str, bool] | None = None,
) -> Splits:
  """Shares clusters of items out, an expected share `search` of them for that.

  Args:
    items: of a task.
    search: the share.
    first: by hash, whether an item of another task is searched on; those of
      this one are added.

  Raises:
    InputError: a split has fewer than two clusters, which give no standard
      error.
  """
  first = {} if first is None else first
  kept: dict[bool, list[ChoiceItem]] = {True: [], False: []}
  for item in items:
    is_search = _position(item.cluster) < search
    # What two clusters both ask is of the split that has it first.
    if first.setdefault(item.hash, is_search) == is_search:
      kept[is_search].append(item)
  for name, is_search in (("search", True), ("report", False)):
    clusters = len({item.cluster for item in kept[is_search]})
    if clusters < _FEWEST:
      raise InputError(
        f"{len(items)} items of {len({item.cluster for item in items})} "
        f"clusters leave {clusters} for the {name} split; {_FEWEST} give a "
        "standard error"
      )
  return Splits(
    _ordered(kept[True]),
    _ordered(kept[False]),
    len(items) - len(kept[True]) - len(kept[False]),
  )


def _position(cluster: str) -> float:
  digest = hashlib.sha256(_SALT + cluster.encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2**64


def _ordered(items: Iterable[ChoiceItem]) -> tuple[ChoiceItem, ...]:
  return tuple(sorted(items, key=lambda item: (item.hash, item.id)))
