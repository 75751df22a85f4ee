"""Which trial a searcher takes next within the limits, or why there is none."""

import random
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.study import leases
from jaxmerge.bayesopt.study.optuna_adapter import read_trials

Limit = Literal["seconds", "tokens"]
Ending = Literal["done", "converged"] | Limit
_LIMITS: tuple[Limit, ...] = get_args(Limit)
# While others are at work, the storage is asked at growing intervals.
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0


class Budget(NamedTuple):
  """Totals over all trials of a study, however many processes ran them.

  Attributes:
    seconds: wall time of the evaluations that finished their trial, above 0.
    tokens: tokens evaluated, above 0.
  """

  seconds: float | None = None
  tokens: int | None = None

  def exceeded(
    self, finished: Sequence[FrozenTrial], reserved: int
  ) -> Limit | None:
    """The limit that one more trial might break, None if it may start.

    A trial not finished yet, as the `reserved` ones that others are at work on,
    is expected to cost as much as the dearest so far. The first of all, whose
    cost nobody knows, always runs, and alone.
    """
    for name in _LIMITS:
      limit = getattr(self, name)
      costs = [t.user_attrs[name] for t in finished if name in t.user_attrs]
      expected = sum(costs) + (reserved + 1) * max(costs, default=0)
      if limit is not None and (expected > limit or (reserved and not costs)):
        return name
    return None


def _slots(study: Study, num_trials: int) -> list[FrozenTrial]:
  """The trials of the budget; their costs and states are read anew."""
  return [t for t in read_trials(study) if t.number < num_trials]


def _finished(slots: Sequence[FrozenTrial]) -> list[FrozenTrial]:
  return [t for t in slots if t.state.is_finished()]


class Rules(NamedTuple):
  """Rules of when a waiting trial may start.

  Attributes:
    limits: of all trials.
    has_converged: says of the finished trials that no further one is to start.
    is_sequential: each trial starts when all others that have begun are
      finished, as it depends on them.
  """

  limits: Budget
  has_converged: Callable[[Sequence[FrozenTrial]], bool] | None = None
  is_sequential: bool = False

  def is_over(self, finished: Sequence[FrozenTrial]) -> bool:
    """Says whether the search has converged."""
    return bool(
      finished and self.has_converged and self.has_converged(finished)
    )

  def may_start(self, slots: Sequence[FrozenTrial], trial: FrozenTrial) -> bool:
    """Says whether a waiting trial may start, beside all others.

    A waiting trial with a live lease is about to start.
    """
    reserved = sum(
      t.state == TrialState.RUNNING
      or (t.state == TrialState.WAITING and leases.is_held_by_another(t))
      for t in slots
      if t.number != trial.number
    )
    finished = _finished(slots)
    if self.is_sequential and (reserved or self.is_over(finished)):
      return False
    return self.limits.exceeded(finished, reserved) is None


def _start_next(
  study: Study, num_trials: int, rules: Rules
) -> leases.Held | None:
  """Claims the first waiting trial that no other searcher gets first."""
  slots = _slots(study, num_trials)
  for trial in slots:
    if trial.state != TrialState.WAITING:
      continue
    if not rules.may_start(slots, trial):
      return None
    held = leases.take(study, trial)
    if held is None:
      continue
    # Judged again with the lease written: of two searchers that want the last
    # unit of a limit, one at least sees the other's.
    slots = _slots(study, num_trials)
    if not rules.may_start(slots, trial):
      held.withdraw()
      return None
    if leases.start(held):
      return held
  return None


def claim(study: Study, num_trials: int, rules: Rules) -> leases.Held | Ending:
  """Claims the next trial, a dead searcher's first, or says why there is none.

  Where there is none yet, waits for the other searchers: each may die and leave
  its trial to this one.
  """
  pause = _FIRST_PAUSE_SECONDS
  while True:
    slots = _slots(study, num_trials)
    held = leases.take_over(study, slots)
    finished = _finished(slots)
    converged = rules.is_over(finished)
    if held is None and not converged:
      held = _start_next(study, num_trials, rules)
    if held is not None:
      return held
    slots = _slots(study, num_trials)
    finished = _finished(slots)
    if len(finished) == len(slots):
      return "done"
    ending: Ending | None = (
      "converged" if converged else rules.limits.exceeded(finished, reserved=0)
    )
    if ending and not any(t.state == TrialState.RUNNING for t in slots):
      return ending
    # Random, or two that stepped back from each other would meet again.
    time.sleep(pause * random.uniform(0.5, 1.5))
    pause = min(1.5 * pause, _LONGEST_PAUSE_SECONDS)
