"""Scores of the checkpoints alone: the limits and the resolution of a search.

N items, T tasks, K checkpoints.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxmerge.evaluation import statistics
from jaxmerge.evaluation.merged_loss import behind
from jaxmerge.evaluation.score import Score, WeightedSum, as_loss
from jaxmerge.evaluation.task_config import GOLD, Goal

# The share of answers of which a plan supposes that two models differ in them.
_CHANGED = 0.1


class Limits(NamedTuple):
  """Limits of how much worse than the best checkpoint each task may be.

  Attributes:
    best_T: scores of the best checkpoint on each task, of the search split.
    tolerances_T: by how much more, each above or at 0.
  """

  best_T: Sequence[Score]
  tolerances_T: Sequence[float]

  @classmethod
  def of(cls, alone_K: Sequence[WeightedSum], goal: Goal) -> "Limits":
    """Those of a search whose checkpoints have these scores.

    Of equals the later checkpoint is the best; one that has diverged is not.
    """
    best = []
    for t in range(len(goal.tasks)):
      found = [score.of_part(t) for score in alone_K]
      finite = [score for score in found if math.isfinite(score.mean)]
      best.append(
        min(reversed(finite), key=lambda s: as_loss(s.mean, s.direction))
      )
    return cls(best, goal.tolerances)

  def excess(self, score: WeightedSum) -> list[statistics.Estimate]:
    """By how much each task is worse than it may be: at most 0 where it is not.

    With the standard error of the paired difference to the best checkpoint, on
    those items that the score is of.
    """
    found = []
    for t, (best, tolerance) in enumerate(zip(self.best_T, self.tolerances_T)):
      estimate = behind(score.of_part(t), best)
      worse = as_loss(estimate.mean, best.direction)
      found.append(estimate._replace(mean=worse - tolerance))
    return found

  def holds(self, score: Score) -> bool:
    """Says whether no task is worse than it may be."""
    assert isinstance(score, WeightedSum)
    return all(estimate.mean <= 0 for estimate in self.excess(score))


class Resolution(NamedTuple):
  """The differences between the checkpoints, and those that a split can tell.

  Attributes:
    spread: the best mean minus the worst.
    detectable: the least true difference that is found four times in five.
    unit: of both.
    items: of the split.
  """

  spread: float
  detectable: float
  unit: str
  items: int

  @classmethod
  def of(cls, alone_K: Sequence[Score]) -> "Resolution":
    """That of the checkpoints' scores, the last one's behind all others."""
    *others, last = [s for s in alone_K if math.isfinite(s.mean)]
    means = [score.mean for score in (*others, last)]
    found = [statistics.difference(s, last).detectable() for s in others]
    return cls(
      max(means) - min(means),
      max(found, default=math.inf),
      last.unit,
      len(last.values_N),
    )

  @property
  def is_enough(self) -> bool:
    """Says whether the split can tell the checkpoints apart."""
    return self.spread > self.detectable


def resolution_text(
  alone_K: Sequence[Mapping[str, WeightedSum]], goal: Goal
) -> str:
  """Says whether the search split can tell merges apart, and what could.

  Args:
    alone_K: by metric, the scores of the checkpoints on the search split.
    goal: of the search.
  """
  found = Resolution.of([scores[goal.metric] for scores in alone_K])
  told = (
    f"the checkpoints are {found.spread:.4f} apart ({found.unit}), and "
    f"{found.items:,} items tell {found.detectable:.4f} from nothing (4 times "
    "in 5)"
  )
  if found.is_enough:
    return told
  told += ": too small a split to tell; take more items"
  if goal.metric == GOLD:
    return told
  gold = Resolution.of([scores[GOLD] for scores in alone_K])
  return (
    f"{told}, or config.metric={GOLD!r} (bits/byte of the right answer), which "
    f"is smoother: by it they are {gold.spread:.4f} apart ({gold.unit}), of "
    f"{gold.detectable:.4f} that can be told"
  )


def expected_resolution(goal: Goal, items_T: Sequence[int]) -> str:
  """Says before anything is scored what accuracies can tell; "" of others.

  Args:
    goal: of a search.
    items_T: to search on, of each task, where all are of questions.
  """
  if goal.metric == GOLD or goal.held_out:
    return ""
  variance = sum(
    weight**2 * _CHANGED / items for weight, items in zip(goal.weights, items_T)
  )
  # Were each item a cluster of its own.
  estimate = statistics.Estimate(0.0, math.sqrt(variance), sum(items_T))
  return (
    f"{sum(items_T):,} items tell a difference of about "
    f"{estimate.detectable():.3f} from nothing, were one answer in "
    f"{1 / _CHANGED:.0f} another; config.metric={GOLD!r} is smoother"
  )
