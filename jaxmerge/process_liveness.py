"""Identifies processes that hold locks or trials, and says if they live."""

import functools
import os
import socket
from typing import NamedTuple

import psutil

# The pid namespace of a Linux host itself has the same number everywhere.
_INITIAL_NUMBERING = 0xEFFFFFFC
# The start of a process, as psutil tells it, moves when the clock is set.
_CLOCK_SECONDS = 2.0


class Owner(NamedTuple):
  """A process, told apart from a later one with the same number.

  Attributes:
    host: host name; in a container that numbers processes on its own, also
      which numbering that is.
    pid: process number.
    start: seconds since the epoch at which it started.
  """

  host: str
  pid: int
  start: float


@functools.lru_cache(maxsize=1)
def _host() -> str:
  """Two containers may share a host name and not see each other's processes."""
  host = socket.gethostname()
  try:
    numbering = os.stat("/proc/self/ns/pid").st_ino
  except OSError:
    return host
  # A part of file names.
  return host if numbering == _INITIAL_NUMBERING else f"{host}.{numbering}"


@functools.lru_cache(maxsize=1)
def _described(pid: int) -> Owner:
  return Owner(_host(), pid, psutil.Process(pid).create_time())


def this_process() -> Owner:
  """The calling process, as it described itself first."""
  return _described(os.getpid())


def is_here(owner: Owner) -> bool:
  """Says whether the owner runs, or ran, on this host."""
  return owner.host == _host()


def is_alive(owner: Owner) -> bool:
  """Says whether a process of this host still runs; a zombie does not.

  One described by an older version, with the start as a text, is not alive.
  """
  if not is_here(owner) or isinstance(owner.start, str):
    return False
  try:
    process = psutil.Process(owner.pid)
    moved = abs(process.create_time() - owner.start)
    return moved < _CLOCK_SECONDS and process.status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False
