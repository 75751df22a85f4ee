"""Compares the scores of models, table by table, with those of the first.

N items, K inputs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.evaluation import statistics
from jaxmerge.evaluation.choice_scores import ACCURACY
from jaxmerge.evaluation.ready_tasks import TaskScores
from jaxmerge.evaluation.score import Score

# A difference is significant below it.
_ALPHA = 1 - statistics.LEVEL


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One input's score; its difference is to the first input.

  Attributes:
    name: of the input.
    score: of it.
    stderr: of the score.
    delta, delta_stderr: the paired difference and its error.
    task, metric: of which the score is.
    p_value: of the difference, Student's or, of an accuracy whose items are
      independent, McNemar's where that is larger; NaN of the first input.
    adjusted: the p-value by Holm over all tables; NaN of `others`.
    detectable: the least true difference that is found four times in five.
    mcnemar: of an accuracy, the exact test.
    others: by metric, the other scores of the same answers.
  """

  name: str
  score: Score
  stderr: float
  delta: float
  delta_stderr: float
  task: str = ""
  metric: str = ""
  p_value: float = math.nan
  adjusted: float = math.nan
  detectable: float = math.nan
  mcnemar: statistics.McNemar | None = None
  others: Mapping[str, "Evaluation"] = dataclasses.field(default_factory=dict)

  @property
  def is_first(self) -> bool:
    """Says whether it is what the others are compared with."""
    return math.isnan(self.p_value)

  @property
  def is_significant(self) -> bool:
    """Says whether the difference is more than noise, of all tables."""
    return self.adjusted < _ALPHA

  def by(self, metric: str) -> "Evaluation":
    """The evaluation by one of its metrics."""
    return self if metric == self.metric else self.others[metric]

  def as_json(self) -> dict[str, Any]:
    """Numbers by name, as "nats_per_token"."""
    numbers: dict[str, Any] = {
      self.score.unit: self.score.mean,
      "stderr": self.stderr,
      **self.score.extras,
      "delta": self.delta,
      "delta_stderr": self.delta_stderr,
    }
    if not self.is_first:
      numbers["p_value"] = self.p_value
      numbers["detectable"] = self.detectable
    if not math.isnan(self.adjusted):
      numbers["p_holm"] = self.adjusted
      numbers["is_significant"] = self.is_significant
    if self.mcnemar is not None and not self.is_first:
      numbers["mcnemar"] = self.mcnemar._asdict()
    for metric, other in self.others.items():
      of_other = other.as_json()
      del of_other["name"]
      numbers[metric] = of_other
    return {"name": self.name} | {
      unit.replace("/", "_per_").replace(" ", "_"): x
      for unit, x in numbers.items()
    }


class Table(NamedTuple):
  """The scores of all inputs on the items of one task."""

  scores: TaskScores
  rows: Sequence[Evaluation]

  @property
  def name(self) -> str:
    return self.scores.name

  @property
  def num_items(self) -> int:
    return len(self.scores.first.values_N)

  @property
  def num_clusters(self) -> int:
    return len(np.unique(self.scores.first.clusters_N))

  @property
  def detectable(self) -> float:
    """The difference that all comparisons can find; NaN where there is none."""
    found = [row.detectable for row in self.rows if row.detectable > 0]
    return max(found, default=math.nan)


def compared(names: Sequence[str], found: Sequence[TaskScores]) -> list[Table]:
  """Compares each input with the first, paired by item, in every table.

  Args:
    names: of the K inputs.
    found: their scores.
  """
  tables = [
    Table(
      scores,
      [_row(name, scores, number) for number, name in enumerate(names)],
    )
    for scores in found
  ]
  rows = zip(*(table.rows for table in tables), strict=True)
  adjusted = [_by_holm(of_input) for of_input in rows]
  return [
    table._replace(rows=[of_input[number] for of_input in adjusted])
    for number, table in enumerate(tables)
  ]


def _by_holm(rows: Sequence[Evaluation]) -> list[Evaluation]:
  """One input's rows in all tables, with adjusted p-values."""
  if rows[0].is_first:
    return list(rows)
  adjusted = statistics.holm([row.p_value for row in rows])
  return [
    dataclasses.replace(row, adjusted=p)
    for row, p in zip(rows, adjusted, strict=True)
  ]


def _row(name: str, table: TaskScores, number: int) -> Evaluation:
  (metric, scores), *others = table.metrics.items()
  row = _evaluation(name, table.name, metric, scores, number)
  rest = {m: _evaluation(name, table.name, m, s, number) for m, s in others}
  return dataclasses.replace(row, others=rest)


def _evaluation(
  name: str, task: str, metric: str, scores: Sequence[Score], number: int
) -> Evaluation:
  score, first = scores[number], scores[0]
  delta = statistics.difference(score, first)
  row = Evaluation(
    name,
    score,
    statistics.ratio(score.values_N, score).stderr,
    delta.mean,
    delta.stderr,
    task,
    metric,
  )
  if number == 0:
    return row
  p_value, test = delta.p_value, None
  if score.unit == ACCURACY and not math.isnan(delta.mean):
    right, before = (each.values_N > 0.5 for each in (score, first))
    test = statistics.mcnemar(right, before)
    if delta.clusters == len(right):  # of which it is exact
      p_value = max(p_value, test.p_value)
  return dataclasses.replace(
    row, p_value=p_value, detectable=delta.detectable(), mcnemar=test
  )
