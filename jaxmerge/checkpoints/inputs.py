"""A run's trail of checkpoints, and the inputs that users type."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from jaxmerge.errors import InputError, Problems
from jaxmerge.files import expanded, user_path
from jaxmerge.formats.lazy_tensors import LazyTensor
from jaxmerge.formats.records.metadata import Metadata, read_metadata
from jaxmerge.formats.records.provenance import ITEM
from jaxmerge.huggingface.found import found_instead
from jaxmerge.huggingface.tensor_kinds import check_no_adapter
from jaxmerge.huggingface.tensors import is_hugging_face, open_tree
from jaxmerge.reading import read_file, read_json
from jaxmerge.redaction import presentable

# Whose names the parameters have.
DECODER, TENSORS = "decoder", "tensors"
# The item of a step directory that is meant where none is named.
PARAMS = "params"
# What transformers' Trainer saves beside a model.
TRAINER = "trainer_state.json"
# As many digits as a count may have.
_STEP = re.compile(r"0|[1-9][0-9]{0,15}")
# An input, and the name of an item of it; no URL ends so.
_OF_ITEM = re.compile(r"(.*[^:/]):([a-z_]+)")


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
    item: of a step directory, the tree that it stands for; the metadata's
      leaves are named `params` all the same.
  """

  path: epath.Path
  name: str
  metadata: Metadata
  layout: str = DECODER
  leaves: Mapping[str, LazyTensor] | None = None
  item: str = PARAMS

  def of(self, item: str) -> "Checkpoint":
    """The same step's tree of another name, such as a running average.

    Raises:
      InputError: there is none of that name; says which there are.
    """
    if item == self.item:
      return self
    if self.leaves is not None:
      raise InputError(f"{self.name}: a Hugging Face directory has no {item}")
    leaves = self.metadata.leaves
    there = [n for n in leaves if _alike(leaves[n], leaves[PARAMS])]
    if item not in there:
      raise InputError(
        f"{self.name}: there is no {item}, it has {', '.join(there)}"
      )
    metadata = dataclasses.replace(
      self.metadata,
      leaves={PARAMS: leaves[item]},
      provenance={**self.metadata.provenance, ITEM: item},
    )
    return dataclasses.replace(self, metadata=metadata, item=item)

  def open_leaves(self) -> Mapping[str, LazyTensor]:
    """Its parameters by name, none of them read.

    Raises:
      InputError: a step directory is damaged.
    """
    if self.leaves is not None:
      return self.leaves
    # Orbax takes longer to import than a small merge of tensors takes.
    from jaxmerge.checkpoints.orbax_adapter import open_orbax

    return open_orbax(self.path, self.metadata, self.item)

  @functools.cached_property
  def trainer_step(self) -> int | None:
    """The step by the trainer that saved a Hugging Face directory."""
    if self.leaves is None:
      return None
    try:
      state = read_json(read_file(self.path / TRAINER))
    except (OSError, ValueError):  # there is none, or it says nothing
      return None
    step = state.get("global_step") if isinstance(state, dict) else None
    return step if type(step) is int else None


def _alike(leaves: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
  """Compares the names, shapes and dtypes of two trees."""
  ones, twos = (
    {name: (leaf["shape"], leaf["dtype"]) for name, leaf in tree.items()}
    for tree in (leaves, others)
  )
  return ones == twos


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
  if missing := [step for step in steps if step not in found]:
    raise InputError(no_steps(workdir, missing, found))

  def open_step(step: int) -> Checkpoint:
    name = presentable(f"{workdir}@{step}")
    return open_checkpoint(step_path(workdir, step), name)

  return _each(open_step, steps)


def open_inputs(
  inputs: Sequence[str],
  open_one: Callable[[epath.Path, str], Checkpoint] | None = None,
) -> list[Checkpoint]:
  """Opens what a user typed: step directories and `workdir@step`.

  With `:ema` or the like behind it, another tree of such a step.

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
      path, item = _locate(name)
    except OSError as error:  # too long a name, no access
      raise InputError(
        f"input {name} cannot be read: {error.strerror or error}"
      ) from error
    return (open_one or open_checkpoint)(path, presentable(name)).of(item)

  return _each(open_input, inputs)


def open_checkpoint(path: epath.Path, name: str) -> Checkpoint:
  """A step directory or a Hugging Face directory, under a name."""
  if not is_hugging_face(path):
    check_no_adapter(path)
    try:
      return Checkpoint(path, name, read_metadata(path))
    except InputError as error:
      if (path / "metadata").exists():
        raise
      more = found_instead(path)
      raise InputError([p + more for p in error.problems]) from error
  metadata, leaves = open_tree(path)
  return Checkpoint(path, name, metadata, TENSORS, leaves)


def _each(
  open_one: Callable[[Any], Checkpoint], places: Sequence[Any]
) -> list[Checkpoint]:
  problems = Problems()
  opened = [problems(functools.partial(open_one, place)) for place in places]
  problems.check()
  return [checkpoint for checkpoint in opened if checkpoint]


def _locate(name: str) -> tuple[epath.Path, str]:
  """The directory that is meant, and its item."""
  name = expanded(name)
  of_item = _OF_ITEM.fullmatch(name)
  if of_item is None or epath.Path(name).exists():  # a colon of its own
    return _place(name), PARAMS
  return _place(of_item[1]), of_item[2]


def each_step(name: str) -> list[str]:
  """The inputs that a workdir without a step stands for, oldest first.

  With `:ema` or the like behind it, that of each step. What is no workdir
  stands for itself.
  """
  place = expanded(name)
  of_item = _OF_ITEM.fullmatch(place)
  end = ""
  if of_item is not None and not epath.Path(place).exists():
    place, end = of_item[1], f":{of_item[2]}"
  try:
    is_one = _is_run(epath.Path(place))
  except OSError:  # who opens it says what is wrong with it
    is_one = False
  steps = steps_in(place) if is_one else []
  return [f"{place}@{step}{end}" for step in steps] or [name]


def _is_run(path: epath.Path) -> bool:
  if not path.exists() or is_hugging_face(path):
    return False
  return (path / "run.json").exists() or bool(steps_in(path))


def _place(name: str) -> epath.Path:
  path = epath.Path(name)
  if path.exists():
    if _is_run(path):
      steps = ", ".join(map(str, saved_steps(path)))
      raise InputError(f"{name} is a workdir; name a step of it: @{steps}")
    return path
  workdir, at, step = name.rpartition("@")
  if not at or not _STEP.fullmatch(step):
    raise InputError(f"input {name} does not exist")
  found = saved_steps(workdir)
  if int(step) not in found:
    raise InputError(no_steps(workdir, [int(step)], found))
  return step_path(workdir, int(step))


def no_steps(
  workdir: epath.PathLike, missing: Sequence[int], found: Sequence[int]
) -> str:
  """Says in one line which steps a run has not, and which it has."""
  noun = "step" if len(missing) == 1 else "steps"
  absent, there = (", ".join(map(str, steps)) for steps in (missing, found))
  return f"{workdir} has no {noun} {absent}; it has {there}"
