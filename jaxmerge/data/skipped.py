"""Documents of a corpus that are not used, counted by reason."""

from collections.abc import Mapping
from typing import Any, NamedTuple

NOT_UTF8 = "not UTF-8"
BLANK = "blank"
HALF_PAIR = "with half of a surrogate pair"
REPEATED = "of a text that is there before"
# Of corpora that were prepared when only the sum was kept.
_EITHER = "not UTF-8 or blank"


class Skip(NamedTuple):
  """Documents that were left out for one reason, and which was the first."""

  number: int
  first: str


class Skipped(dict[str, Skip]):
  """Skips by their reason."""

  def add(self, reason: str, name: str) -> None:
    number, first = self.get(reason, (0, name))
    self[reason] = Skip(number + 1, first)

  @property
  def total(self) -> int:
    return sum(self.numbers.values())

  @property
  def numbers(self) -> dict[str, int]:
    """The number of each reason; for the metadata of checkpoints."""
    return {reason: skip.number for reason, skip in self.items()}

  def summary(self) -> str:
    """For example "101 skipped: 100 not UTF-8 (first: b.txt), 1 blank ..."."""
    reasons = ", ".join(
      f"{skip.number} {reason}" + (f" (first: {skip.first})" * bool(skip.first))
      for reason, skip in self.items()
    )
    return f"{self.total} skipped: {reasons}" if self else "none skipped"


def from_json(value: Any) -> Skipped:
  """Reads a mapping of Skips, or the number that stood in its place once.

  Raises:
    ValueError: it is neither.
  """
  if type(value) is int and value >= 0:
    return Skipped({_EITHER: Skip(value, "")} if value else {})
  found = Skipped()
  entries = value.items() if isinstance(value, Mapping) else [("", value)]
  for reason, entry in entries:
    match entry:
      case [int(number), str(first)]:
        found[reason] = Skip(number, first)
      case _:
        raise ValueError(f"what was skipped is said to be {entry!r}")
  return found
