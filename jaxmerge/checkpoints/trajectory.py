"""A run's trail of checkpoints, and the inputs that users type."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from jaxmerge.checkpoints.leaves import Leaf
from jaxmerge.checkpoints.metadata import Metadata, read_metadata
from jaxmerge.checkpoints.tensor_trees import is_hugging_face, open_tree
from jaxmerge.errors import InputError, check
from jaxmerge.files import expanded, user_path
from jaxmerge.shown import presentable

# Whose names the parameters have.
DECODER, TENSORS = "decoder", "tensors"
# As many digits as a count may have.
_STEP = re.compile(r"0|[1-9][0-9]{0,15}")
# Keys of a model's config that say how it is computed, not what it is.
_HOW_IT_RUNS = ("dtype", "remat")


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
  leaves: Mapping[str, Leaf] | None = None

  def open_leaves(self) -> Mapping[str, Leaf]:
    """Its parameters by name, none of them read.

    Raises:
      InputError: a step directory is damaged.
    """
    if self.leaves is not None:
      return self.leaves
    # Orbax takes longer to import than a small merge of tensors takes.
    from jaxmerge.checkpoints.orbax_rows import open_orbax

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
  check(
    f"{workdir} has no step {step}; it has {', '.join(map(str, found))}"
    for step in steps
    if step not in found
  )
  return _open([(step_path(workdir, s), f"{workdir}@{s}") for s in steps])


def open_inputs(inputs: Sequence[str]) -> list[Checkpoint]:
  """Opens what a user typed: step directories and `workdir@step`.

  Raises:
    InputError: lists every input that is missing, damaged or not a checkpoint.
  """
  places: list[tuple[epath.Path, str]] = []
  problems: list[str] = [] if inputs else ["no input is given"]
  for name in inputs:
    try:
      places.append((_locate(name), name))
    except InputError as error:
      problems += error.problems
    except OSError as error:  # too long a name, no access
      problems.append(f"input {name} cannot be read: {error.strerror or error}")
  check(problems)
  return _open(places)


def _locate(name: str) -> epath.Path:
  name = expanded(name)
  path = epath.Path(name)
  if path.exists():
    if (path / "checkpoints").exists():
      steps = ", ".join(map(str, saved_steps(path)))
      raise InputError(f"{name} is a workdir; name a step of it: @{steps}")
    return path
  workdir, at, step = name.rpartition("@")
  if at and _STEP.fullmatch(step):
    found = saved_steps(workdir)
    if int(step) in found:
      return step_path(workdir, int(step))
    raise InputError(
      f"{workdir} has no step {step}; it has {', '.join(map(str, found))}"
    )
  raise InputError(f"input {name} does not exist")


def _open(places: Sequence[tuple[epath.Path, str]]) -> list[Checkpoint]:
  checkpoints: list[Checkpoint] = []
  problems: list[str] = []
  for path, name in places:
    try:
      checkpoints.append(_opened(path, presentable(name)))
    except InputError as error:
      problems += error.problems
  check(problems)
  return checkpoints


def _opened(path: epath.Path, name: str) -> Checkpoint:
  if not is_hugging_face(path):
    return Checkpoint(path, name, read_metadata(path))
  tree = open_tree(path)
  return Checkpoint(path, name, tree.metadata, TENSORS, tree.leaves)


def check_step_directories(checkpoints: Sequence[Checkpoint]) -> None:
  """Refuses Hugging Face directories where parameters must be known.

  Raises:
    InputError: names them, and the command that converts them.
  """
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

  Args:
    checkpoints: two or more.
    allow_unrelated: accept other runs and tokenizers, never other trees.

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
    if not allow_unrelated:
      found = [
        _difference("run", first, other, lambda m: m.run_id),
        _tokenizer_difference(first, other),
      ]
      if not first.metadata.run_id and not other.metadata.run_id:
        found.append(
          f"neither {first.name} nor {other.name} says of which run it is"
        )
      problems += [f"{f}; --allow_unrelated accepts it" for f in found if f]
  check(problems)


def check_comparable(checkpoints: Sequence[Checkpoint]) -> None:
  """Refuses checkpoints that one model and one tokenizer cannot score.

  Raises:
    InputError: lists every difference from the first checkpoint.
  """
  first, *rest = checkpoints
  problems: list[str] = []
  for other in rest:
    problems += _tree_differences(first, other)
    found = _tokenizer_difference(first, other)
    problems += [found] if found else []
  check(problems)


def _difference(
  what: str,
  first: Checkpoint,
  other: Checkpoint,
  of: Callable[[Metadata], str],
) -> str:
  a, b = of(first.metadata), of(other.metadata)
  if a == b:
    return ""
  return (
    f"{other.name} is of another {what} than {first.name} "
    f"({b[:12]} against {a[:12]})"
  )


def _tokenizer_difference(first: Checkpoint, other: Checkpoint) -> str:
  found = _difference("tokenizer", first, other, lambda m: m.tokenizer_hash)
  has_json = [bool(c.metadata.tokenizer) for c in (first, other)]
  if found and any(has_json) and not all(has_json):
    found += ", of which only one is a tokenizer.json"
  return found


def _tree_differences(first: Checkpoint, other: Checkpoint) -> list[str]:
  a = first.metadata.leaves["params"]
  b = other.metadata.leaves["params"]
  model_a, model_b = first.metadata.model, other.metadata.model
  problems = [
    f"{other.name}: model.{key} is {model_b.get(key)!r}, "
    f"of {first.name} {model_a.get(key)!r}"
    for key in sorted(model_a.keys() | model_b.keys())
    if key not in _HOW_IT_RUNS and model_a.get(key) != model_b.get(key)
  ]
  problems += [f"{other.name} has no parameter {n}" for n in a if n not in b]
  problems += [
    f"{other.name} has a parameter {n} that {first.name} has not"
    for n in b
    if n not in a
  ]
  for name in a:
    for key in ("shape", "dtype"):
      if name in b and a[name][key] != b[name][key]:
        problems.append(
          f"{other.name}: {key} of {name} is {b[name][key]}, "
          f"of {first.name} {a[name][key]}"
        )
  return problems
