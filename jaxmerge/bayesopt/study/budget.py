"""Hard limits on what a study may cost in all, over every searcher."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from optuna.trial import FrozenTrial

from jaxmerge.errors import check

Limit = Literal["seconds", "tokens"]
_LIMITS: tuple[Limit, ...] = ("seconds", "tokens")


@dataclasses.dataclass(frozen=True)
class Budget:
  """Totals over all trials of a study, however many processes ran them.

  Attributes:
    seconds: wall time of the evaluations that finished their trial.
    tokens: tokens evaluated.

  Raises:
    InputError: a limit that is not positive.
  """

  seconds: float | None = None
  tokens: int | None = None

  def __post_init__(self) -> None:
    check(
      f"the limit of {name} must be positive, got {getattr(self, name)}"
      for name in _LIMITS
      if getattr(self, name) is not None and not getattr(self, name) > 0
    )


def exceeded(
  limits: Budget, finished: Sequence[FrozenTrial], reserved: int
) -> Limit | None:
  """The limit that one more trial might break, None if it may start.

  A trial not finished yet is expected to cost as much as the dearest so far.
  The first of all, whose cost nobody knows, always runs, and alone.

  Args:
    limits: of the study.
    finished: trials whose cost is known.
    reserved: number of trials that others are at work on.
  """
  for name in _LIMITS:
    limit = getattr(limits, name)
    if limit is None:
      continue
    costs = [t.user_attrs[name] for t in finished if name in t.user_attrs]
    if not costs:
      if reserved:
        return name
    elif sum(costs) + (reserved + 1) * max(costs) > limit:
      return name
  return None
