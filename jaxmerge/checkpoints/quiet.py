"""Keeps Orbax's reports of its own failures off the terminal.

A save or restore that fails reaches the user as one InputError. Orbax and the
event loop below it report the same failure again from other threads, also
after the call has returned, in hundreds of lines.
"""

import functools
import logging
import sys
import traceback
from typing import Any

_CLOSED = "Event loop is closed"


def _is_orbax(record: logging.LogRecord) -> bool:
  if record.name == "absl":
    return "orbax" in record.pathname
  if "never retrieved" not in record.getMessage():
    return False
  trace = record.exc_info[2] if record.exc_info else None
  if trace is None:  # a future of TensorStore, whose failure is of C++
    return True
  return any("orbax" in f.filename for f in traceback.extract_tb(trace))


@functools.cache
def silence_orbax() -> None:
  """Drops what Orbax logs, and the calls to event loops that it has closed.

  Once for the whole process: its threads outlive the call that failed.
  """
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(lambda record: not _is_orbax(record))
  report = sys.unraisablehook

  def report_others(unraisable: Any) -> None:
    if str(unraisable.exc_value) != _CLOSED:
      report(unraisable)

  sys.unraisablehook = report_others
