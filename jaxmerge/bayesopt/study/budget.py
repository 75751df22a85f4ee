"""Hard limits on what a study may cost in all, over every searcher."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from optuna.trial import FrozenTrial

from jaxmerge.errors import check

Limit = Literal["seconds", "tokens"]
_LIMITS: tuple[Limit, ...] = get_args(Limit)


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
      f"the limit of {name} must be positive, got {limit}"
      for name, limit in dataclasses.asdict(self).items()
      if limit is not None and not limit > 0
    )

  def exceeded(
    self, finished: Sequence[FrozenTrial], reserved: int
  ) -> Limit | None:
    """The limit that one more trial might break, None if it may start.

    A trial not finished yet is expected to cost as much as the dearest so far.
    The first of all, whose cost nobody knows, always runs, and alone.

    Args:
      finished: trials whose cost is known.
      reserved: number of trials that others are at work on.
    """
    for name in _LIMITS:
      limit = getattr(self, name)
      costs = [t.user_attrs[name] for t in finished if name in t.user_attrs]
      expected = sum(costs) + (reserved + 1) * max(costs, default=0)
      if limit is not None and (expected > limit or (reserved and not costs)):
        return name
    return None
