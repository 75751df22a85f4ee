"""How a verb ends early: bad input, or a run that cannot go on.

Bad input is one exception with every problem found.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


class InputError(ValueError):
  """Bad input from the user; a verb prints it and exits with code 2.

  Attributes:
    problems: one sentence per problem, in the order in which they were found.
  """

  def __init__(self, problems: str | Iterable[str]):
    if isinstance(problems, str):
      problems = [problems]
    self.problems = list(problems)
    super().__init__("\n".join(self.problems))


class Diverged(Exception):
  """A training run whose loss is not finite; a verb prints it, exit code 3."""

  exit_code = 3


def check(problems: Iterable[str]) -> None:
  """Raises InputError if there is any problem."""
  problems = list(problems)
  if problems:
    raise InputError(problems)


class Problems:
  """Gathers the problems of several checks, to be told all at once."""

  def __init__(self, found: Iterable[str] = ()):
    self._found = list(found)

  def __call__(self, do: Callable[[], _T]) -> _T | None:
    """What `do` returns; None where it raises InputError."""
    try:
      return do()
    except InputError as error:
      self._found += error.problems
      return None

  @property
  def found(self) -> list[str]:
    """The problems so far, each once."""
    return list(dict.fromkeys(self._found))

  def add(self, problem: str) -> None:
    self._found.append(problem)

  def check(self) -> None:
    """Raises InputError if there is any problem so far."""
    check(self.found)
