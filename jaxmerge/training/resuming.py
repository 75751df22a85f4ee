"""Which of its checkpoints a run goes on from: the newest that is whole."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from etils import epath

from jaxmerge.checkpoints.inputs import step_path
from jaxmerge.errors import Damaged, InputError, grouped
from jaxmerge.files import make_directory
from jaxmerge.formats.records.metadata import read_metadata

_T = TypeVar("_T")


class Problem(NamedTuple):
  """A step that is damaged, and why."""

  step: int
  said: str


def newest_whole(
  steps: Sequence[int], open_step: Callable[[int], _T]
) -> tuple[_T, list[Problem]]:
  """Opens the newest step that is whole; also gives the newer ones.

  Args:
    steps: at least one.
    open_step: raises Damaged for a step that is not whole.

  Raises:
    InputError: none is whole, with what is wrong with each; or as `open_step`.
  """
  damaged: list[Problem] = []
  for step in sorted(steps, reverse=True):
    try:
      return open_step(step), damaged
    except Damaged as error:
      [said] = grouped(error.problems)
      damaged.append(Problem(step, said))
  raise InputError(
    [
      *(problem.said for problem in damaged),
      "no checkpoint of the run is whole: restore one, or begin anew in "
      "another workdir",
    ]
  )


def set_aside(workdir: epath.Path, damaged: Sequence[Problem]) -> Iterator[str]:
  """Moves steps to `<workdir>/damaged/<step>`, or `<step>-2` and so on.

  Yields what has become of each, in a line.
  """
  for step, said in damaged:
    folder = make_directory(workdir / "damaged")
    names = (f"{step}-{n}" if n > 1 else f"{step}" for n in itertools.count(1))
    place = next(p for p in map(folder.joinpath, names) if not p.exists())
    step_path(workdir, step).rename(place)
    yield f"{said}; it is set aside as {place}"


def temporary_steps(workdir: epath.Path, steps: Sequence[int]) -> list[int]:
  """Steps that a stop has saved; reads the newest ones' metadata alone.

  They are deleted when the next regular one is whole, so that no more than
  that one can be newer.
  """
  found: list[int] = []
  for place, step in enumerate(sorted(steps, reverse=True)):
    try:
      is_temporary = read_metadata(step_path(workdir, step)).temporary
    except InputError:
      break
    if is_temporary:
      found.append(step)
    elif place:
      break
  return found
