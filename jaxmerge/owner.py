"""Which process owns a lock or a trial, and whether it still lives."""

import functools
import os
import pathlib
import socket
import subprocess
from typing import NamedTuple

# The pid namespace of a Linux host itself has the same number everywhere.
_INITIAL_NUMBERING = 0xEFFFFFFC


class Owner(NamedTuple):
  """A process, told apart from a later one with the same number.

  Attributes:
    host: host name; in a container that numbers processes on its own, also
      which numbering that is.
    pid: process number.
    start: when the process started, in the words of its operating system.
  """

  host: str
  pid: int
  start: str


def _process_start(pid: int) -> str | None:
  """Start time of a process, None where there is none or it is a zombie."""
  stat = pathlib.Path(f"/proc/{pid}/stat")
  if pathlib.Path("/proc/self/stat").exists():
    try:
      # The name, in parentheses, may hold blanks; field 3 follows it.
      fields = stat.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
      return None
    return None if fields[0] in "ZX" else fields[19]
  listed = subprocess.run(
    ["ps", "-o", "lstart=", "-p", str(pid)],
    capture_output=True,
    text=True,
    check=False,
  )
  return "-".join(listed.stdout.replace(":", ".").split()) or None


@functools.lru_cache(maxsize=1)
def _host() -> str:
  """Two containers may share a host name and not see each other's processes."""
  try:
    numbering = os.stat("/proc/self/ns/pid").st_ino
  except OSError:
    numbering = _INITIAL_NUMBERING
  if numbering == _INITIAL_NUMBERING:
    return socket.gethostname()
  return f"{socket.gethostname()}.{numbering}"  # a part of file names


@functools.lru_cache(maxsize=1)
def _described(pid: int) -> Owner:
  return Owner(_host(), pid, _process_start(pid) or "")


def this_process() -> Owner:
  return _described(os.getpid())


def is_here(owner: Owner) -> bool:
  """Whether the owner runs, or ran, on this host."""
  return owner.host == _host()


def is_alive(owner: Owner) -> bool:
  """Whether a process of this host still runs."""
  return is_here(owner) and _process_start(owner.pid) == owner.start
