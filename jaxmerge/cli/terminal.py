"""Shows the progress of a verb: a bar, or a line now and then."""

import io
import math
import os
import sys
import threading
import time
from collections.abc import Callable

import tqdm

from jaxmerge.parallel import distributed
from jaxmerge.redaction import presentable


def _has_width() -> bool:
  """Says whether a bar can be drawn; some terminals have zero columns."""
  if not sys.stdout.isatty():
    return False
  try:
    return os.get_terminal_size(sys.stdout.fileno()).columns > 0
  except OSError:  # what stands for a terminal may have no size
    return True


class TerminalProgress:
  """A progress bar per stage; where there is no terminal, a line now and then.

  Only the first process of a job prints. From the second call of a stage on it
  says when the stage may end, by the mean time of the steps that this process
  has seen done. A note ends the bar. Within its context ten seconds of silence
  (of compiling, for example) end in a line.

  Args:
    clock: seconds from any moment on.
  """

  _SECONDS_BETWEEN_LINES = 10.0
  # tqdm's own guess weighs the latest steps most, and jumps.
  _FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"

  def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
    self._clock = clock
    self._stage = ""
    self._bar: tqdm.tqdm | None = None
    self._is_drawn = False  # the bar, on a terminal
    self._first = (0, 0.0)  # steps done and time at the stage's first call
    # Of the latest line, and of the latest that tells something new.
    self._printed = self._told = clock()
    self._is_first_line = True
    self._lock = threading.Lock()
    self._ended = threading.Event()

  def __enter__(self) -> "TerminalProgress":
    threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *error: object) -> None:
    self._ended.set()
    with self._lock:  # no line is half printed
      self._close()

  def _watch(self) -> None:
    while not self._ended.wait(1.0):
      with self._lock:
        if not self._ended.is_set():
          self.beat()

  def beat(self) -> None:
    """Says after ten seconds of silence that the work goes on."""
    if not distributed.is_first_process() or not self._is_silent():
      return
    if self._bar is not None and self._is_drawn:
      self._printed = self._clock()
      self._bar.refresh()
    elif self._bar is not None:
      self._print_line()
    else:
      self._printed = self._clock()
      name = f"{self._stage}: " if self._stage else ""
      seconds = self._printed - self._told
      print(f"{name}at work, {seconds:.0f} s so far", flush=True)

  def note(self, name: str, text: str) -> None:
    if distributed.is_first_process():
      with self._lock:
        self._close()
        self._stage = name
        self._printed = self._told = self._clock()
        print(f"{name}: {presentable(text)}", flush=True)

  def stage(self, name: str, done: int, of: int, note: str = "") -> None:
    if distributed.is_first_process():
      with self._lock:
        self._show(name, done, of, note)

  def _show(self, name: str, done: int, of: int, note: str) -> None:
    self._told = self._clock()
    is_new = self._bar is None or name != self._stage
    if is_new:
      self._close()
      self._stage = name
      self._first = (done, self._clock())
      self._is_drawn = _has_width()
      self._bar = tqdm.tqdm(
        total=of,
        desc=name,
        initial=done,
        file=sys.stdout if self._is_drawn else io.StringIO(),
        dynamic_ncols=True,
        bar_format=self._FORMAT,
      )
    assert self._bar is not None
    words = [self._eta(done, of), presentable(note)]
    text = self._fitting(", ".join(filter(None, words)))
    self._bar.set_postfix_str(text, refresh=is_new)
    self._bar.update(done - self._bar.n)
    if self._is_drawn:
      self._printed = self._clock()
    elif done == of or self._is_first_line or self._is_silent():
      self._print_line()
    if done == of:
      self._close()

  def _fitting(self, text: str) -> str:
    """The text without the last parts, where a terminal is too narrow."""
    assert self._bar is not None
    numbers = self._bar.format_dict
    while "; " in text:
      line = {**numbers, "ncols": None, "postfix": text}
      if len(tqdm.tqdm.format_meter(**line)) <= (numbers["ncols"] or math.inf):
        break
      text = text.rpartition("; ")[0]
    return text

  def _eta(self, done: int, of: int) -> str:
    """For example "ETA 2:05"; nothing before a step is timed, or at the end."""
    done_before, start = self._first
    if not done_before < done < of:
      return ""
    seconds_a_step = (self._clock() - start) / (done - done_before)
    left = tqdm.tqdm.format_interval(round(seconds_a_step * (of - done)))
    return f"ETA {left.removeprefix('0')}"

  def _is_silent(self) -> bool:
    return self._clock() > self._printed + self._SECONDS_BETWEEN_LINES

  def _print_line(self) -> None:
    assert self._bar is not None
    self._printed, self._is_first_line = self._clock(), False
    numbers = {**self._bar.format_dict, "ncols": None, "ascii": True}
    print(tqdm.tqdm.format_meter(**numbers), flush=True)

  def _close(self) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None
