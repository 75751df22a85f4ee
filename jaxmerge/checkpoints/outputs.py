"""Guards what every verb writes: never over or among what is not ours."""

import contextlib
import os
from collections.abc import Iterator, Sequence

from etils import epath

from jaxmerge.checkpoints.content import (
  is_step_directory,
  why_not_a_checkpoint,
)
from jaxmerge.errors import Problems, check
from jaxmerge.files import absolute, replace_directory


def check_output(
  path: epath.PathLike,
  *,
  overwrite: bool,
  inputs: Sequence[epath.PathLike] = (),
) -> None:
  """Refuses a place where a checkpoint must not be written.

  Args:
    path: what is to be made, or replaced as a whole.
    overwrite: whether it may be replaced.
    inputs: what is read meanwhile.

  Raises:
    InputError: `path` exists and is not to be overwritten, is something else
      than a checkpoint, holds an input, or check_place refuses it.
  """
  path = absolute(path)
  problems = Problems()
  problems(lambda: check_place(path, inputs=inputs))
  if path.exists():
    reason = why_not_a_checkpoint(path)
    if reason:
      problems.add(
        f"{path} is not a checkpoint, so --overwrite does not replace it: "
        f"{reason}"
      )
    elif not overwrite:
      problems.add(f"{path} exists; use --overwrite to replace it")
  for name in map(absolute, inputs):
    # An input itself has been read to its end when it is replaced.
    if not _same(path, name) and any(_same(path, p) for p in _places(name)):
      problems.add(f"{path} holds the input {name}")
  problems.check()


@contextlib.contextmanager
def output_directory(
  path: epath.PathLike, *, overwrite: bool
) -> Iterator[epath.Path]:
  """Yields a temporary path that becomes `path`, as replace_directory does.

  What is replaced is looked at before, and again when the new one is whole.

  Raises:
    InputError: as check_output and replace_directory.
  """

  def check_again() -> None:
    check_output(path, overwrite=overwrite)

  check_again()
  with replace_directory(
    path, overwrite=overwrite, check=check_again
  ) as temporary:
    yield temporary


def check_place(
  path: epath.PathLike, *, inputs: Sequence[epath.PathLike] = ()
) -> None:
  """Refuses a place in which nothing must be written.

  Links are followed, one after the other: each name on the way counts.

  Raises:
    InputError: `path` lies in the checkpoints of a run, in another checkpoint
      or in an input, or is a link that leads nowhere.
  """
  path = absolute(path)
  places = _places(path)
  problems = [
    f"{place} is a link to {os.readlink(place)}, where nothing is"
    for place in places
    if os.path.islink(place) and not os.path.exists(place)
  ]
  if any(_is_trail(place) for place in places):
    problems.append(
      f"{path} lies among the checkpoints of a run, which could then not go on"
    )
  above = [p for p in places if not _same(p, path)]
  for place in [p for p in above if is_step_directory(p)][:1]:
    problems.append(f"{path} lies in the checkpoint {place}")
  problems += [
    f"{path} lies in the input {name}"
    for name in inputs
    if any(_same(place, absolute(name)) for place in above)
  ]
  check(problems)


def _is_trail(place: epath.Path) -> bool:
  return place.name == "checkpoints" and (place.parent / "run.json").exists()


def _same(one: epath.Path, other: epath.Path) -> bool:
  """Says whether two paths name one directory; one need not exist."""
  if "://" in str(one) or "://" in str(other):
    return str(one).rstrip("/") == str(other).rstrip("/")
  return os.path.realpath(one) == os.path.realpath(other)


def _places(path: epath.Path) -> list[epath.Path]:
  """A path and all that it lies in, by each name that it has on the way."""
  if "://" in str(path):
    # A bucket is the root; what is above it is nobody's.
    above = [p for p in path.parents if str(p).partition("://")[2].strip("/")]
    return [path, *(p for p in above if "://" in str(p))]
  found = [str(path)]
  for place in found:  # grows meanwhile
    parent, name = os.path.split(place)
    names = [parent]
    if name == "..":  # of where a link before it leads
      names = [os.path.realpath(place)]
    elif os.path.islink(place):
      names.append(os.path.join(parent, os.readlink(place)))
    found += [n for n in names if n not in found]
  return [epath.Path(place) for place in found]
