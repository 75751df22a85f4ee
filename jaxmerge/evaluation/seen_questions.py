"""Finds merges that were chosen by the very items that are to score them."""

import functools
from collections.abc import Mapping, Sequence

from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.errors import InputError, Problems
from jaxmerge.evaluation.tasks.task import ChoiceItem
from jaxmerge.formats.records.provenance import hashes_seen


def seen_questions(
  checkpoints: Sequence[Checkpoint],
  questions: Mapping[str, Sequence[ChoiceItem]],
  advice: str,
) -> list[str]:
  """Names merges that were chosen by items of a task, and how many these are.

  Args:
    questions: the items of the tasks, by their texts.
    advice: on what to do.
  """
  problems = Problems()
  for checkpoint in checkpoints:
    seen = problems(functools.partial(_hashes_seen, checkpoint)) or set()
    for name, items in questions.items() if seen else ():
      if count := sum(item.hash in seen for item in items):
        problems.add(
          f"{checkpoint.name}: its weights were searched on {count:,} of the "
          f"{len(items):,} items of {name}, so its score says little; {advice}"
        )
  return problems.found


def _hashes_seen(checkpoint: Checkpoint) -> set[str]:
  try:
    return hashes_seen(checkpoint.metadata)
  except InputError as error:
    raise InputError(f"{checkpoint.name}: {error}") from error
