"""The protocol by which a verb tells its progress while it runs."""

from typing import Protocol


class Progress(Protocol):
  """Told of stages and notes by name; the terminal's is in `cli`."""

  def stage(self, name: str, done: int, of: int, note: str = "") -> None:
    """Tells that `done` steps `of` all are done; `note` says how it goes.

    A note is of parts between "; ", the last of which give way first.
    """

  def note(self, name: str, text: str) -> None:
    """Tells a line of text."""
