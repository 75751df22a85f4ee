"""The one exception for bad input: every problem found, in one message."""

from collections.abc import Iterable


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


def check(problems: Iterable[str]) -> None:
  """Raises InputError if there is any problem."""
  problems = list(problems)
  if problems:
    raise InputError(problems)
