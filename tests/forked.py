"""Verbs as programs that begin at once, for tests that start many.

Each is forked from a process that has imported everything and started nothing.
"""

import multiprocessing
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from jaxmerge.cli import launch

_CONTEXT = multiprocessing.get_context("forkserver")
VERBS = ("pretrain", "search", "merge", "evaluate", "convert")
_CONTEXT.set_forkserver_preload(
  [*(f"jaxmerge.{verb}" for verb in VERBS), "tests.forked"]
)


def _verb(verb: str, argv: Sequence[str], folder: str) -> None:
  os.chdir(folder)
  sys.path.insert(0, folder)  # as `python -m` does
  sys.argv = [f"jaxmerge.{verb}", *argv]
  sys.exit(launch.run(verb))


def _main(
  work: Callable[..., None],
  arguments: Sequence[Any],
  output: str,
  changed: Mapping[str, str],
) -> None:
  os.environ.update(changed)
  # A background job of a shell ignores it, and so would its children.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  for stream in (1, 2):
    os.dup2(file, stream)
  work(*arguments)


def start(
  verb: str,
  argv: Sequence[str],
  output: pathlib.Path,
  changed: Mapping[str, str] | None = None,
  folder: pathlib.Path | None = None,
) -> BaseProcess:
  """Starts a verb whose output goes to a file; with changes of its environ.

  `folder`: to run in; None: that of the tests.
  """
  where = str(folder or pathlib.Path.cwd())
  return start_work(_verb, (verb, list(argv), where), output, changed)


def start_work(
  work: Callable[..., None],
  arguments: Sequence[Any],
  output: pathlib.Path,
  changed: Mapping[str, str] | None = None,
) -> BaseProcess:
  """Starts a function of a module, as `start`."""
  process = _CONTEXT.Process(
    target=_main, args=(work, arguments, str(output), dict(changed or {}))
  )
  process.start()
  return process
