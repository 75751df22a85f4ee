"""The tasks of a search, one by one, in its report.

T tasks.
"""

from typing import NamedTuple

from jaxmerge.evaluation.score import Direction, WeightedSum, as_loss
from jaxmerge.evaluation.statistics import LEVEL, Estimate, difference


class TaskRow(NamedTuple):
  """One task of the sum that was searched on, on the report split.

  Attributes:
    name: of the task.
    factor: of its score in the sum.
    unit, direction: of its score.
    last, merged: the scores of the last checkpoint and of the merge.
    delta, stderr: merged minus last, and its paired standard error.
    clusters: of items that are alike, which the error is from.
  """

  name: str
  factor: float
  unit: str
  direction: Direction
  last: float
  merged: float
  delta: float
  stderr: float
  clusters: int

  @property
  def difference(self) -> Estimate:
    """Merged minus last."""
    return Estimate(self.delta, self.stderr, self.clusters)

  @property
  def verdict(self) -> str:
    """Says "better" or "worse" where the 95% interval leaves out 0, else ""."""
    if self.difference.p_value >= 1 - LEVEL:
      return ""
    return "better" if as_loss(self.delta, self.direction) < 0 else "worse"


def task_rows(last: WeightedSum, merged: WeightedSum) -> list[TaskRow]:
  """A row for each task, of the last checkpoint and the merge."""
  found = []
  for t, part in enumerate(last.parts):
    before, after = last.of_part(t), merged.of_part(t)
    delta = difference(after, before)
    found.append(TaskRow(*part, before.mean, after.mean, *delta))
  return found
