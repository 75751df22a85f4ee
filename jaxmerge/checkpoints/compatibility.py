"""Checks that checkpoints go together: runs, models, trees, tokenizers."""

from collections.abc import Sequence

from jaxmerge.checkpoints.inputs import TENSORS, Checkpoint
from jaxmerge.checkpoints.model_differences import model_differences
from jaxmerge.checkpoints.tree_differences import tree_differences
from jaxmerge.errors import check
from jaxmerge.huggingface.vocabularies import (
  has_tokenizer,
  vocabulary_difference,
)


def check_mergeable(
  checkpoints: Sequence[Checkpoint],
  *,
  allow_unrelated: bool = False,
  allow_other_tokenizer: bool = False,
) -> None:
  """Refuses checkpoints whose trees, models, tokenizers or runs differ.

  Args:
    allow_unrelated: accept other runs, and those of unknown origin but for
      Hugging Face directories of one tokenizer, none of which says its run.
    allow_other_tokenizer: accept other vocabularies.

  Raises:
    InputError: lists every difference from the first checkpoint.
  """
  first, *rest = checkpoints
  problems = []
  for other in rest:
    if first.layout != other.layout:
      problems.append(
        f"{first.name} and {other.name} are of two formats; convert one of "
        "them first (python -m jaxmerge.convert)"
      )
      continue
    problems += _model_differences(first, other)
    if not allow_unrelated:
      found = [*_run_difference(first, other), *_no_tokenizer(first, other)]
      problems += [f"{text}; --allow_unrelated accepts it" for text in found]
    if not allow_other_tokenizer:
      found = _tokenizer_difference(first, other)
      problems += [f"{p}; --allow_other_tokenizer accepts it" for p in found]
  of_one_layout = [c for c in checkpoints if c.layout == first.layout]
  check(problems + tree_differences(of_one_layout))


def check_comparable(
  checkpoints: Sequence[Checkpoint], *, allow_other_tokenizer: bool = False
) -> None:
  """Refuses checkpoints whose scores cannot be compared; models may differ.

  Args:
    allow_other_tokenizer: accept other vocabularies.

  Raises:
    InputError: lists every difference from the first checkpoint.
  """
  first, *rest = checkpoints
  problems = [p for other in rest for p in _no_tokenizer(first, other)]
  if not allow_other_tokenizer:
    problems += [
      f"{p}; config.evaluator=heldout_loss compares them"
      for other in rest
      for p in _tokenizer_difference(first, other)
    ]
  check(problems)


def is_one_model(first: Checkpoint, other: Checkpoint) -> bool:
  """Says whether one program computes both."""
  differences = _model_differences(first, other)
  return not (differences or tree_differences([first, other]))


def is_one_tokenizer(first: Checkpoint, other: Checkpoint) -> bool:
  """Says whether both have one vocabulary, or one of them has none."""
  return not _tokenizer_difference(first, other)


def _run_difference(first: Checkpoint, other: Checkpoint) -> list[str]:
  """Says that one is of another run, or that it may be.

  Plain models of other tools say of no run: equal tensors (tree_differences)
  and tokenizers say that they belong together.
  """
  run, other_run = first.metadata.run_id, other.metadata.run_id
  if run or other_run:
    return (run != other_run) * [
      f"{other.name} is of another run than {first.name}"
    ]
  are_plain = first.leaves is not None and other.leaves is not None
  if are_plain and not _tokenizer_difference(first, other):
    return []
  return [f"neither {first.name} nor {other.name} says of which run it is"]


def _no_tokenizer(first: Checkpoint, other: Checkpoint) -> list[str]:
  """Says that only one has a tokenizer."""
  has = [has_tokenizer(c.metadata) for c in (first, other)]
  if has[0] == has[1]:
    return []
  one, none = (first, other) if has[0] else (other, first)
  return [f"{none.name} has no tokenizer to compare with that of {one.name}"]


def _tokenizer_difference(first: Checkpoint, other: Checkpoint) -> list[str]:
  found = vocabulary_difference(first.metadata, other.metadata)
  return bool(found) * [
    f"{other.name} is of another tokenizer than {first.name} ({found})"
  ]


def _model_differences(first: Checkpoint, other: Checkpoint) -> list[str]:
  found = model_differences(
    first.metadata.model,
    other.metadata.model,
    are_theirs=first.layout == TENSORS,
  )
  return [
    f"{other.name}: model.{key} is {b!r}, of {first.name} {a!r}"
    for key, (a, b) in found.items()
  ]
