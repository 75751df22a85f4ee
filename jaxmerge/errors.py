"""Exceptions that end a verb early; bad input is one with every problem."""

import itertools
from collections.abc import Callable, Iterable
from typing import TypeVar

from jaxmerge.redaction import printable

_T = TypeVar("_T")
# The exit code of Ctrl-C.
INTERRUPTED = 130
# Nobody reads more problems; a damaged file may have millions.
_MOST_PROBLEMS = 1000


class InputError(ValueError):
  """Bad input, a sentence per problem; a verb prints it, exit code 2."""

  def __init__(self, problems: str | Iterable[str]):
    if isinstance(problems, str):
      problems = [problems]
    self.problems = list(problems)
    super().__init__("\n".join(self.problems))


class Damaged(InputError):
  """A checkpoint that is not whole, or not what was saved."""


class Stopped(Exception):
  """A run that a signal has ended, with all of it saved; a verb prints it."""

  def __init__(self, said: str, exit_code: int):
    self.exit_code = exit_code
    super().__init__(said)


class Diverged(Exception):
  """A training run whose loss is not finite; a verb prints it, exit code 3.

  Attributes:
    step: the one that shows it.
  """

  exit_code = 3

  def __init__(self, why: str, step: int = 0):
    super().__init__(f"the run has diverged: {why}")
    self.step = step


class Terminated(KeyboardInterrupt):
  """SIGTERM, unwound like Ctrl-C; a verb prints it, exit code 4."""

  exit_code = 4


def describe_interrupt(error: KeyboardInterrupt) -> tuple[str, int]:
  """Says an interrupt in one line; returns that and the exit code.

  Verbs note on the exception what has really been saved (`add_note`).
  """
  said = getattr(error, "__notes__", None) or [
    "what is not saved is lost, and the same command may be given again"
  ]
  exit_code = error.exit_code if isinstance(error, Terminated) else INTERRUPTED
  return printable("; ".join(["interrupted", *said])), exit_code


def check(problems: Iterable[str], kind: type[InputError] = InputError) -> None:
  """Raises InputError if there is any problem; it names the first thousand."""
  found = list(itertools.islice(problems, _MOST_PROBLEMS + 1))
  if found[_MOST_PROBLEMS:]:
    found[_MOST_PROBLEMS] = "there are more problems than these"
  if found:
    raise kind(found)


def grouped(problems: Iterable[str]) -> list[str]:
  """Problems of one kind as one line: the first, and how many there are."""
  found = list(problems)
  more = f" ({len(found)} of this kind)" if found[1:] else ""
  return [line + more for line in found[:1]]


class Problems(list[str]):
  """Gathers the problems of several checks, to be told all at once."""

  def __call__(self, do: Callable[[], _T]) -> _T | None:
    """Returns what `do` returns; None where it raises InputError."""
    try:
      return do()
    except InputError as error:
      self += error.problems
      return None

  @property
  def found(self) -> list[str]:
    """The problems so far, each once."""
    return list(dict.fromkeys(self))

  def add(self, problem: str) -> None:
    self.append(problem)

  def check(self) -> None:
    """Raises InputError if there is any problem so far."""
    check(self.found)
