"""One process at a time: a lock of the operating system on what is written.

The lock is free as soon as its process has ended, however it ended. The file
that carries it says who holds it.
"""

import contextlib
import datetime
import json
import os
from collections.abc import Iterator

import filelock
from etils import epath

from jaxmerge import process_liveness
from jaxmerge.errors import InputError
from jaxmerge.files import make_directory, resolved
from jaxmerge.reading import read_file, read_json

_SUFFIX = ".jaxmerge-lock"


def _sign(descriptor: int) -> os.stat_result:
  """Writes who holds a lock into its file; returns which file that is."""
  me = process_liveness.this_process()
  now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
  text = json.dumps({"pid": me.pid, "host": me.host, "since": now})
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, text.encode(), 0)
  return os.fstat(descriptor)


@contextlib.contextmanager
def taken(
  file: epath.PathLike, *, wait: bool = True, poll_seconds: float = 0.05
) -> Iterator[None]:
  """Holds a lock of the operating system, in whose file it says who has it.

  Args:
    file: carries the lock and is removed at the end; a link there is refused.
    wait: for another holder to end.
    poll_seconds: between two looks at whether it has.

  Raises:
    filelock.Timeout: another has it, and `wait` is false.
    OSError: the file system cannot keep one there.
  """
  signed: list[os.stat_result] = []
  # Not a soft lock where there is no flock: that would outlive its process.
  lock = filelock.FileLock(
    file,
    fallback_to_soft=False,
    on_acquired=lambda descriptor: signed.append(_sign(descriptor)),
  )
  with lock.acquire(blocking=wait, poll_interval=poll_seconds):
    try:
      yield
    finally:
      # While it is still held: whoever has opened the file before looks again
      # when it gets the lock of a file that is gone.
      with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(file), signed[0]):
          os.unlink(file)


@contextlib.contextmanager
def exclusive(
  path: epath.PathLike, what: str, *, wait: bool = False
) -> Iterator[None]:
  """Holds the lock of a path for as long as the block runs.

  The lock is a hidden file beside the path, `.<name>.jaxmerge-lock`, so that
  the path itself need not exist. It is removed at the end; one that a killed
  process has left is taken over. An object store has no locks: there the block
  runs unguarded. Of a multi-process job only the first process may call this.

  Args:
    path: what is written; links are followed.
    what: its name in the message, such as "the workdir runs/a".
    wait: for another holder to end, instead of raising.

  Raises:
    InputError: another process, or another block of this one, holds the lock;
      or the file system cannot keep one here.
  """
  file = lock_file(path)
  if "://" in str(file):
    yield
    return
  make_directory(file.parent)
  with contextlib.ExitStack() as held:
    try:
      held.enter_context(taken(file, wait=wait))
    except filelock.Timeout:
      raise InputError(f"{what} is in use by {_holder(file)}") from None
    except OSError as error:
      raise InputError(
        f"{what} cannot be locked with {file}: {error.strerror or error}"
      ) from error
    yield


def lock_file(path: epath.PathLike) -> epath.Path:
  """The file that locks a path: beside what the path leads to."""
  real = resolved(path)
  return real.parent / f".{real.name}{_SUFFIX}"


def _holder(file: epath.Path) -> str:
  """Names the process that holds a lock, which may not have signed yet."""
  try:
    held = read_json(read_file(file))
    return f"process {held['pid']} on {held['host']} since {held['since']}"
  except (OSError, ValueError, TypeError, KeyError):
    return "another process"
