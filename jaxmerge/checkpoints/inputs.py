"""A run's trail of checkpoints, and the inputs that users type."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from jaxmerge.errors import InputError, Problems, check
from jaxmerge.files import expanded, user_path
from jaxmerge.formats.lazy_tensors import LazyTensor
from jaxmerge.formats.records.metadata import Metadata, read_metadata
from jaxmerge.huggingface.tensors import is_hugging_face, open_tree
from jaxmerge.redaction import presentable

# Whose names the parameters have.
DECODER, TENSORS = "decoder", "tensors"
# As many digits as a count may have.
_STEP = re.compile(r"0|[1-9][0-9]{0,15}")
# Keys of a model's config that say how it is computed, not what it is.
HOW_IT_RUNS = ("dtype", "remat")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """One saved tree: where it lies and what it says of itself.

  Attributes:
    path: its step directory.
    name: what the user typed, or `workdir@step`, as it may be shown and kept.
    metadata: read and checked; no array has been touched.
    layout: DECODER, or TENSORS of a Hugging Face directory by its own names.
    leaves: of a Hugging Face directory, none of them read; None of a step
      directory.
  """

  path: epath.Path
  name: str
  metadata: Metadata
  layout: str = DECODER
  leaves: Mapping[str, LazyTensor] | None = None

  def open_leaves(self) -> Mapping[str, LazyTensor]:
    """Its parameters by name, none of them read.

    Raises:
      InputError: a step directory is damaged.
    """
    if self.leaves is not None:
      return self.leaves
    # Orbax takes longer to import than a small merge of tensors takes.
    from jaxmerge.checkpoints.orbax_adapter import open_orbax

    return open_orbax(self.path, self.metadata)


def saved_steps(workdir: epath.PathLike) -> list[int]:
  """The steps of a run in increasing order, by directory names alone.

  Raises:
    InputError: `workdir` does not exist or has no checkpoints.
  """
  workdir = user_path(workdir)
  if not workdir.exists():
    raise InputError(f"workdir {workdir} does not exist")
  steps = steps_in(workdir)
  if not steps:
    raise InputError(f"workdir {workdir} has no checkpoints")
  return steps


def steps_in(workdir: epath.PathLike) -> list[int]:
  """As saved_steps; none where there is no workdir or no checkpoint."""
  folder = user_path(workdir) / "checkpoints"
  names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
  return sorted(int(name) for name in names if _STEP.fullmatch(name))


def step_path(workdir: epath.PathLike, step: int) -> epath.Path:
  return user_path(workdir) / "checkpoints" / str(step)


def open_steps(
  workdir: epath.PathLike, steps: Sequence[int]
) -> list[Checkpoint]:
  """The checkpoints of these steps of a run; all problems in one message."""
  found = saved_steps(workdir)
  check(_no_step(workdir, step, found) for step in steps if step not in found)

  def open_step(step: int) -> Checkpoint:
    name = presentable(f"{workdir}@{step}")
    return open_checkpoint(step_path(workdir, step), name)

  return _each(open_step, steps)


def open_inputs(
  inputs: Sequence[str],
  open_one: Callable[[epath.Path, str], Checkpoint] | None = None,
) -> list[Checkpoint]:
  """Opens what a user typed: step directories and `workdir@step`.

  Args:
    inputs: as typed.
    open_one: opens a directory under a name; None: open_checkpoint.

  Raises:
    InputError: lists every input that is missing, damaged or not a checkpoint.
  """
  if not inputs:
    raise InputError("no input is given")

  def open_input(name: str) -> Checkpoint:
    try:
      path = _locate(name)
    except OSError as error:  # too long a name, no access
      raise InputError(
        f"input {name} cannot be read: {error.strerror or error}"
      ) from error
    return (open_one or open_checkpoint)(path, presentable(name))

  return _each(open_input, inputs)


def open_checkpoint(path: epath.Path, name: str) -> Checkpoint:
  """A step directory or a Hugging Face directory, under a name."""
  if not is_hugging_face(path):
    return Checkpoint(path, name, read_metadata(path))
  metadata, leaves = open_tree(path)
  return Checkpoint(path, name, metadata, TENSORS, leaves)


def _each(
  open_one: Callable[[Any], Checkpoint], places: Sequence[Any]
) -> list[Checkpoint]:
  problems = Problems()
  opened = [problems(functools.partial(open_one, place)) for place in places]
  problems.check()
  return [checkpoint for checkpoint in opened if checkpoint]


def _locate(name: str) -> epath.Path:
  name = expanded(name)
  path = epath.Path(name)
  if path.exists():
    if (path / "checkpoints").exists():
      steps = ", ".join(map(str, saved_steps(path)))
      raise InputError(f"{name} is a workdir; name a step of it: @{steps}")
    return path
  workdir, at, step = name.rpartition("@")
  if not at or not _STEP.fullmatch(step):
    raise InputError(f"input {name} does not exist")
  found = saved_steps(workdir)
  if int(step) not in found:
    raise InputError(_no_step(workdir, step, found))
  return step_path(workdir, int(step))


def _no_step(
  workdir: epath.PathLike, step: int | str, found: Sequence[int]
) -> str:
  return f"{workdir} has no step {step}; it has {', '.join(map(str, found))}"


def check_step_directories(checkpoints: Sequence[Checkpoint]) -> None:
  """Refuses Hugging Face directories where parameters must be known."""
  check(
    f"{c.name} is a Hugging Face directory; convert it first: python -m "
    f"jaxmerge.convert --input={c.name} --output=DIR --format=orbax"
    for c in checkpoints
    if c.layout == TENSORS
  )


def check_mergeable(
  checkpoints: Sequence[Checkpoint], *, allow_unrelated: bool = False
) -> None:
  """Refuses checkpoints whose trees, tokenizers or runs differ.

  `allow_unrelated` accepts other runs and tokenizers, never other trees.

  Raises:
    InputError: lists every difference from the first checkpoint.
  """
  first, *rest = checkpoints
  problems = [
    f"{c.name} is quantized, says its config.json: its numbers mean nothing "
    "without their scales; merge what it was made of"
    for c in checkpoints
    if c.metadata.model.get("quantization_config")
  ]
  for other in rest:
    if first.layout != other.layout:
      problems.append(
        f"{first.name} and {other.name} are of two formats; convert one of "
        "them first (python -m jaxmerge.convert)"
      )
      continue
    problems += _tree_differences(first, other)
    if allow_unrelated:
      continue
    run, other_run = first.metadata.run_id, other.metadata.run_id
    found = _difference("run", first, other, run, other_run)
    found += _tokenizer_difference(first, other)
    if not run and not other_run:
      found.append(
        f"neither {first.name} nor {other.name} says of which run it is"
      )
    problems += [f"{text}; --allow_unrelated accepts it" for text in found]
  check(problems)


def check_comparable(checkpoints: Sequence[Checkpoint]) -> None:
  """Refuses checkpoints that one model and one tokenizer cannot score.

  Raises:
    InputError: lists every difference from the first checkpoint.
  """
  first, *rest = checkpoints
  check(
    problem
    for other in rest
    for find in (_tree_differences, _tokenizer_difference)
    for problem in find(first, other)
  )


def _difference(
  what: str, first: Checkpoint, other: Checkpoint, a: str, b: str
) -> list[str]:
  """Says that two texts differ; nothing where they are the same."""
  return (a != b) * [
    f"{other.name} is of another {what} than {first.name} "
    f"({b[:12]} against {a[:12]})"
  ]


def _tokenizer_difference(first: Checkpoint, other: Checkpoint) -> list[str]:
  a, b = first.metadata, other.metadata
  one_json = bool(a.tokenizer) != bool(b.tokenizer)
  more = ", of which only one is a tokenizer.json" if one_json else ""
  return [
    found + more
    for found in _difference(
      "tokenizer", first, other, a.tokenizer_hash, b.tokenizer_hash
    )
  ]


def _tree_differences(first: Checkpoint, other: Checkpoint) -> list[str]:
  a = first.metadata.leaves["params"]
  b = other.metadata.leaves["params"]
  model_a, model_b = first.metadata.model, other.metadata.model
  problems = [
    f"{other.name}: model.{key} is {model_b.get(key)!r}, "
    f"of {first.name} {model_a.get(key)!r}"
    for key in sorted(model_a.keys() | model_b.keys())
    if key not in HOW_IT_RUNS and model_a.get(key) != model_b.get(key)
  ]
  problems += [f"{other.name} has no parameter {n}" for n in a if n not in b]
  problems += [
    f"{other.name} has a parameter {n} that {first.name} has not"
    for n in b
    if n not in a
  ]
  problems += [
    f"{other.name}: {key} of {name} is {b[name][key]}, "
    f"of {first.name} {a[name][key]}"
    for name in a
    for key in ("shape", "dtype")
    if name in b and a[name][key] != b[name][key]
  ]
  return problems
