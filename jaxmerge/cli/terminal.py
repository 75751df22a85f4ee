"""Shows the progress of a verb: a bar, or a line now and then."""

import io
import os
import sys
import threading
import time
from collections import deque
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
  has seen done in the last hour, all that lies between them included. A note
  ends the bar. Within its context ten seconds of silence (of compiling, for
  example) end in a line.

  Args:
    clock: seconds from any moment on.
  """

  _SECONDS_BETWEEN_LINES = 10.0
  _COLUMNS_OF_LINES = 110
  _SECONDS_OF_MEAN = 3600.0
  _SECONDS_BETWEEN_MARKS = 10.0
  # tqdm's own guess weighs the latest steps most, and jumps.
  _FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"

  def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
    self._clock = clock
    self._stage = ""
    self._bar: tqdm.tqdm | None = None
    self._is_drawn = False  # the bar, on a terminal
    self._timed = ""  # the stage that the marks are of
    self._marks = deque([(0, 0.0)])  # steps done and the time, oldest first
    self._began = 0.0
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
    self._mark(name, done)
    is_new = self._bar is None or name != self._stage
    if is_new:
      self._close()
      self._stage = name
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
    since = tqdm.tqdm.format_interval(self._clock() - self._began)
    # A bar says itself how long it has been there.
    when = self._eta(done, of) or ("" if self._is_drawn else since)
    text = self._fitting(", ".join(filter(None, [when, presentable(note)])))
    self._bar.set_postfix_str(text, refresh=is_new)
    self._bar.update(done - self._bar.n)
    if self._is_drawn:
      self._printed = self._clock()
    elif done == of or self._is_first_line or self._is_silent():
      self._print_line()
    if done == of:
      self._timed = ""
      self._close()

  def _mark(self, name: str, done: int) -> None:
    """Notes when how much was done, of the last hour and a little more."""
    now = self._clock()
    if name != self._timed or done < self._marks[-1][0]:
      self._timed, self._began = name, now
      self._marks = deque([(done, now)])
    hour_ago = now - self._SECONDS_OF_MEAN
    while len(self._marks) > 1 and self._marks[1][1] <= hour_ago:
      self._marks.popleft()
    if now >= self._marks[-1][1] + self._SECONDS_BETWEEN_MARKS:
      self._marks.append((done, now))

  def _fitting(self, text: str) -> str:
    """The text without the last parts, where the line is too narrow."""
    assert self._bar is not None
    numbers = {**self._bar.format_dict, "ncols": None}
    columns = self._bar.format_dict["ncols"] or self._COLUMNS_OF_LINES
    while "; " in text:
      line = self._line(text)
      if self._is_drawn:
        line = tqdm.tqdm.format_meter(**{**numbers, "postfix": text})
      if len(line) <= columns:
        break
      text = text.rpartition("; ")[0]
    return text

  def _line(self, text: str) -> str:
    assert self._bar is not None
    done, of = self._bar.n, self._bar.total
    share = 100 * done / of if of else 100
    return f"{self._stage}: {share:3.0f}% {done}/{of} [{text}]"

  def _eta(self, done: int, of: int) -> str:
    """For example "ETA 2:05"; nothing before a step is timed, or at the end."""
    done_before, start = self._marks[0]
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
    print(self._line(self._bar.postfix or ""), flush=True)

  def _close(self) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None
