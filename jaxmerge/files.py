"""Whole-or-not-at-all writing of files and directories."""

import contextlib
import glob
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psutil
from etils import epath

from jaxmerge import process_liveness
from jaxmerge.errors import InputError

_SETTLE_SECONDS = 0.2
_SETTLE_TRIES = 25


def cache_root() -> epath.Path:
  """The directory that keeps prepared corpora and compiled programs."""
  return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxmerge"


def expanded(path: str) -> str:
  """A path as typed, with the home directory for a `~` that it begins with.

  A shell does so, but not behind the "=" of a flag or in a config.

  Raises:
    InputError: there is no such home directory.
  """
  found = os.path.expanduser(path)
  if path.startswith("~") and found == path:
    raise InputError(
      f"{path}: there is no home directory {path.partition('/')[0]}; ./{path} "
      "names a path that begins so"
    )
  return found


def user_path(path: epath.PathLike) -> epath.Path:
  """The path that a user means: `expanded`, else as it is."""
  return epath.Path(expanded(os.fspath(path)))


def absolute(path: epath.PathLike) -> epath.Path:
  """A local path from the root, as Orbax wants it; URLs stay as they are."""
  path = user_path(path)
  return path if "://" in str(path) else path.absolute()


def resolved(path: epath.PathLike) -> epath.Path:
  """A local path with all links followed; URLs stay as they are."""
  path = absolute(path)
  return path if "://" in str(path) else epath.Path(os.path.realpath(path))


def human_bytes(size: float) -> str:
  """1536 -> "1.5 KiB"."""
  units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
  while size >= 1024 and len(units) > 1:
    size /= 1024
    units.pop(0)
  return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def _temporary_name(path: epath.Path, what: str = "tmp") -> epath.Path:
  """A name of this process beside a path, which tells whose it is."""
  me = process_liveness.this_process()
  end = f"{me.host}-{me.pid}-{uuid.uuid4().hex[:8]}"
  return path.parent / f".{path.name}.{what}-{end}"


def _leftovers(path: epath.Path, what: str) -> list[epath.Path]:
  """Lists `_temporary_name`s that dead processes of this machine left."""
  start = f".{path.name}.{what}-{process_liveness.this_process().host}-"
  form = re.compile(rf"{re.escape(start)}(\d+)-[0-9a-f]{{8}}")
  return [
    name
    for name in path.parent.glob(f"{glob.escape(start)}*")
    if (match := form.match(name.name)) and not psutil.pid_exists(int(match[1]))
  ]


def make_directory(path: epath.PathLike) -> epath.Path:
  """Creates a directory that can be written to, or says why it cannot.

  Raises:
    InputError: the path is a file, or cannot be created or written.
  """
  path = user_path(path)
  probe = _temporary_name(path / "probe")
  try:
    path.mkdir(parents=True, exist_ok=True)
    for leftover in _leftovers(path / "probe", "tmp"):
      leftover.unlink(missing_ok=True)
    probe.write_text("probe")
  except OSError as error:
    raise InputError(
      f"cannot write to {path}: {error.strerror or error}"
    ) from error
  finally:
    with contextlib.suppress(OSError):
      probe.unlink(missing_ok=True)
  return path


def check_can_make(path: epath.PathLike) -> None:
  """Says why a directory could not be made here, and makes nothing.

  Raises:
    InputError: the path or a parent of it is a file, or is read-only.
  """
  path = absolute(path)
  if "://" in str(path):  # an object store answers only to a write
    return
  path = _nearest(path)
  if not path.is_dir():
    raise InputError(f"cannot write to {path}: it is a file")
  if not os.access(path, os.W_OK | os.X_OK):
    raise InputError(f"cannot write to {path}: it is read-only")


def free_bytes(path: epath.PathLike) -> float:
  """Room where `path` is to be written; infinite on an object store."""
  path = absolute(path)
  if "://" in str(path):
    return math.inf
  return shutil.disk_usage(_nearest(path)).free


def _nearest(path: epath.Path) -> epath.Path:
  """The path, or the closest of its parents that exists."""
  return next(place for place in [path, *path.parents] if place.exists())


def check_room(path: epath.PathLike, size: int) -> None:
  """Raises InputError if `size` bytes cannot be written to `path`."""
  free = free_bytes(path)
  if free < size:
    raise InputError(
      f"{human_bytes(size)} are to be written to {path}, where "
      f"{human_bytes(free)} are free"
    )


def check_memory(what: str, size: float) -> None:
  """Raises InputError if `size` bytes are more than this machine has free."""
  free = psutil.virtual_memory().available
  if free < size:
    raise InputError(
      f"{what} take {human_bytes(size)} of memory, of which "
      f"{human_bytes(free)} are free"
    )


def write_bytes(path: epath.PathLike, content: bytes) -> None:
  """Writes a file under a temporary name, then renames it into place."""
  path = epath.Path(path)
  temporary = _temporary_name(path)
  try:
    temporary.write_bytes(content)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: epath.PathLike, text: str) -> None:
  write_bytes(path, text.encode())


def write_json(path: epath.PathLike, value: Any) -> None:
  write_text(path, json.dumps(value, indent=2) + "\n")


def _clear_leftovers(path: epath.Path) -> None:
  """Takes back or removes what killed processes of this machine began.

  One that was killed between the two renames of a replacement has left the
  earlier `path` beside its place.
  """
  for old in _leftovers(path, "old"):
    if not path.exists():
      old.rename(path)
  for leftover in _leftovers(path, "tmp") + _leftovers(path, "old"):
    with contextlib.suppress(FileNotFoundError):
      leftover.rmtree()


def _remove_for_good(temporary: epath.Path) -> None:
  """Removes a directory and what Orbax began beside it, under longer names.

  The threads of a save that failed may write for a moment more.
  """
  for _ in range(_SETTLE_TRIES):
    leftovers = list(temporary.parent.glob(f"{glob.escape(temporary.name)}*"))
    if not leftovers:
      return
    for leftover in leftovers:
      with contextlib.suppress(OSError):  # written to again: the next try
        leftover.rmtree()
    time.sleep(_SETTLE_SECONDS)


@contextlib.contextmanager
def _made_beside(
  path: epath.PathLike,
) -> Iterator[tuple[epath.Path, epath.Path]]:
  """Yields where a path leads, and a temporary path beside that.

  Nothing is left of the temporary one, nor of those of killed processes.

  Raises:
    InputError: the place cannot be written to.
  """
  path = resolved(path)
  make_directory(path.parent)
  _clear_leftovers(path)
  temporary = _temporary_name(path)
  try:
    yield path, temporary
  except OSError as error:
    raise InputError(
      f"cannot write to {path}: {error.strerror or error}"
    ) from error
  finally:
    _remove_for_good(temporary)


@contextlib.contextmanager
def replace_directory(
  path: epath.PathLike,
  *,
  overwrite: bool = True,
  check: Callable[[], None] = lambda: None,
) -> Iterator[epath.Path]:
  """Yields a temporary path that becomes `path` when the block succeeds.

  The block creates the temporary directory. Nothing of it is left behind when
  the block raises, and an earlier `path` stays until the new one is whole.

  Args:
    path: where it is to be; what a link leads to is replaced, not the link.
    overwrite: False leaves what has come there in the meantime alone.
    check: raises InputError where what is there now must not be replaced.

  Raises:
    InputError: the place cannot be written to, or is not to be overwritten.
  """
  with _made_beside(path) as (place, temporary):
    yield temporary
    if place.exists() and not overwrite:
      raise InputError(
        f"{place} has been made by another process in the meantime; it is left "
        "as it is"
      )
    if place.exists():
      check()
      old = _temporary_name(place, "old")
      place.rename(old)
      try:
        temporary.rename(place)
      except BaseException:  # also a signal
        old.rename(place)
        raise
      old.rmtree()
    else:
      temporary.rename(place)


@contextlib.contextmanager
def files_of_directory(
  path: epath.PathLike, *, first: str = ""
) -> Iterator[epath.Path]:
  """Yields a temporary directory whose files go into `path` at the end.

  A new `path` appears whole. In one that is there each file appears whole or
  replaces its namesake, and all others stay.

  Args:
    first: name of the file that goes first, and says whose the others are.

  Raises:
    InputError: the place cannot be written to.
  """
  with _made_beside(path) as (place, temporary):
    temporary.mkdir()
    yield temporary
    if not place.exists():
      temporary.rename(place)
      return
    for file in sorted(temporary.iterdir(), key=lambda f: (f.name != first, f)):
      file.replace(place / file.name)
