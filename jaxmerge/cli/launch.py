"""A verb as a program: one line at a signal, whenever it comes.

Every verb file hands over to `run` before it imports anything else, so that
this module imports nothing heavy. As a library a verb installs no handler.
"""

import contextlib
import functools
import importlib
import io
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Iterator
from typing import NoReturn

from jaxmerge import allocator, interrupts
from jaxmerge.errors import Terminated, describe_interrupt

_RAISED: dict[int, type[KeyboardInterrupt]] = {
  signal.SIGINT: KeyboardInterrupt,
  signal.SIGTERM: Terminated,
}
# `timeout`, job managers and terminals signal a process and then its group:
# a second signal so soon after the first is the same request.
_SAME_SECONDS = 0.5
# Python ignores exceptions raised in a finalizer and in this callback of JAX.
_SWALLOWING = ("__del__", "_xla_gc_callback")
_AGAIN_SECONDS = 0.02
# Those that run a model. The others hold tensors as large as a chunk.
_COMPUTING = ("pretrain", "search", "evaluate", "quickstart")


def _is_swallowed(frame: types.FrameType | None) -> bool:
  frames = traceback.walk_stack(frame) if frame else ()
  return any(at.f_code.co_name in _SWALLOWING for at, _ in frames)


class _Signals:
  """The first signal unwinds the program, a second one ends it at once.

  While a run is at its steps the first one is only noted (interrupts.py).

  Python's handlers wait until a program of XLA returns, so that a thread,
  woken by the C handler, looks out for the second signal.

  In a job whose loop asks for it, jax.distributed.initialize takes SIGTERM for
  itself (a notice of preemption to all processes); that is left alone, as is a
  signal that the parent process has chosen to ignore.
  """

  def __init__(self, verb: str):
    self._verb = verb
    self._terminal = os.dup(2)
    self._last_words = threading.Lock()
    self._first = 0
    self.can_unwind = False  # before that nothing has been begun

  def watch(self) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in _RAISED:
      if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, self._unwind)
    threading.Thread(target=self._watch, args=(read,), daemon=True).start()

  def _unwind(self, number: int, frame: types.FrameType | None) -> None:
    if self._first or interrupts.note(number):
      return
    if _is_swallowed(frame):  # once more, when that call has returned
      again = functools.partial(os.kill, os.getpid(), number)
      threading.Timer(_AGAIN_SECONDS, again).start()
      return
    self._first = number
    # Threads, finalizers and libraries would print their own messages.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    raise _RAISED[number]

  def _watch(self, read: int) -> None:
    first, since = 0, 0.0
    while True:
      [number] = os.read(read, 1)
      if number not in _RAISED:
        continue
      if not first:
        first, since = number, time.monotonic()
        if self.can_unwind:
          continue
      elif time.monotonic() < since + _SAME_SECONDS:
        continue
      self._end(_RAISED[first]())

  @contextlib.contextmanager
  def last_words(self) -> Iterator[None]:
    """Whatever is raised after a signal is taken for its consequence."""
    try:
      yield
    except BaseException as error:
      if not self._first:
        raise
      if not isinstance(error, KeyboardInterrupt):  # a library wrapped it
        error = _RAISED[self._first]()
      with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
      self._end(error)

  def _end(self, error: KeyboardInterrupt) -> NoReturn:
    """Says it in one line and ends the process, without threads and atexit."""
    self._last_words.acquire()  # for ever: the other caller is ending it
    text, exit_code = describe_interrupt(error)
    new_line = "\n" if os.isatty(self._terminal) else ""  # after "^C"
    line = f"{new_line}jaxmerge.{self._verb}: {text}\n"
    with contextlib.suppress(OSError):
      os.write(self._terminal, line.encode())
    os._exit(exit_code)


def run(verb: str) -> int:
  """Imports a verb, runs its main on the command line; its exit code.

  SIGINT and SIGTERM end in one line and exit code 130 or 4; see runner.run for
  the others. To be called by a program that is nothing but this verb.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")  # a terminal of ASCII
  signals = _Signals(verb)
  signals.watch()
  if verb in _COMPUTING:
    allocator.keep_memory(sys.argv[1:])

  def main() -> None:
    with signals.last_words():
      module.main(sys.argv[1:])

  with signals.last_words():
    module = importlib.import_module(f"jaxmerge.{verb}")
    runner = importlib.import_module("jaxmerge.cli.runner")
    signals.can_unwind = True
    return runner.run(verb, main)
