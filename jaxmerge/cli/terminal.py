"""Shows the progress of a verb: a bar, or a line now and then."""

import io
import math
import sys
import time
from collections.abc import Callable

import tqdm

from jaxmerge.parallel import distributed
from jaxmerge.redaction import presentable


class TerminalProgress:
  """A progress bar per stage; where there is no terminal, a line now and then.

  Only the first process of a job prints. From the second call of a stage on it
  says when the stage may end, by the mean time of the steps that this process
  has seen done. A note ends the bar.

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
    self._first = (0, 0.0)  # steps done and time at the stage's first call
    self._printed = -math.inf

  def note(self, name: str, text: str) -> None:
    if distributed.is_first_process():
      self._close()
      print(f"{name}: {presentable(text)}", flush=True)

  def stage(self, name: str, done: int, of: int, note: str = "") -> None:
    if not distributed.is_first_process():
      return
    if self._bar is None or name != self._stage:
      self._close()
      self._stage = name
      self._first = (done, self._clock())
      self._bar = tqdm.tqdm(
        total=of,
        desc=name,
        initial=done,
        file=sys.stdout if sys.stdout.isatty() else io.StringIO(),
        dynamic_ncols=True,
        bar_format=self._FORMAT,
      )
    words = [self._eta(done, of), presentable(note)]
    # The note comes last: a narrow terminal cuts the line there.
    self._bar.set_postfix_str(", ".join(filter(None, words)), refresh=False)
    self._bar.update(done - self._bar.n)
    if not sys.stdout.isatty():
      self._print_line(final=done == of)
    if done == of:
      self._close()

  def _eta(self, done: int, of: int) -> str:
    """For example "ETA 2:05"; nothing before a step is timed, or at the end."""
    done_before, start = self._first
    if not done_before < done < of:
      return ""
    seconds_a_step = (self._clock() - start) / (done - done_before)
    left = tqdm.tqdm.format_interval(round(seconds_a_step * (of - done)))
    return f"ETA {left.removeprefix('0')}"

  def _print_line(self, *, final: bool) -> None:
    assert self._bar is not None
    if final or self._clock() > self._printed + self._SECONDS_BETWEEN_LINES:
      self._printed = self._clock()
      numbers = {**self._bar.format_dict, "ncols": None, "ascii": True}
      print(tqdm.tqdm.format_meter(**numbers), flush=True)

  def _close(self) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None
