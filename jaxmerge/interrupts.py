"""Signals that are noted while a run is at its steps, and end nothing there.

A program's handler (cli/launch.py) asks `note` first. Without such a handler,
as in a notebook, nothing is noted: an interrupt unwinds the run.
"""

import contextlib
import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass
class Held:
  """Holds what has come of signals.

  Attributes:
    begun: from then on they are noted; before, they unwind.
    first: the number of the first one, 0 for none.
  """

  begun: bool = False
  first: int = 0


_held: Held | None = None


@contextlib.contextmanager
def held() -> Iterator[Held]:
  """Has signals noted in what it yields, as soon as that says `begun`."""
  global _held
  _held = Held()
  try:
    yield _held
  finally:
    _held = None


def note(number: int) -> bool:
  """Notes a signal; False where it is to unwind the program."""
  if _held is None or not _held.begun:
    return False
  _held.first = _held.first or number
  return True
