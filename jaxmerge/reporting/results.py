"""The numbers of a report: trials, rows of baselines and results.json.

A "loss" is a score in the unit and of the direction of the search's evaluator;
weights are of each checkpoint, by training step.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from etils import epath

from jaxmerge.errors import check
from jaxmerge.evaluation.score import Direction, as_loss, noun
from jaxmerge.evaluation.statistics import LEVEL, Estimate
from jaxmerge.files import write_json
from jaxmerge.reporting.task_rows import TaskRow

# The reason of a trial that was given up as clearly not the best.
STOPPED_EARLY = "stopped early"
# Of more checkpoints alone than these the rows hide those of the merges.
_MOST_SINGLE = 8


class Trial(NamedTuple):
  """One question of a search, scored or not.

  Attributes:
    number: in the study, from 0.
    loss: search loss; of a trial with a `failure` as far as it came, or nan.
    stderr: paired standard error of `loss` against trial 0.
    asked_by: "start", the name of an acquisition or "explore".
    odds: probability that GP-Hedge gave each acquisition; none of a start.
    predicted_mean: the loss that the process expected; None of a start.
    predicted_std: of that prediction, with the loss's known noise.
    failure: why the trial has no loss, "" where it has one.
    breaks: the tasks on which it is worse than it may be.
  """

  number: int
  weights: Mapping[int, float]
  loss: float
  stderr: float
  asked_by: str
  odds: Mapping[str, float] = MappingProxyType({})
  predicted_mean: float | None = None
  predicted_std: float | None = None
  failure: str = ""
  breaks: Sequence[str] = ()


class Point(NamedTuple):
  """A loss during training: step, tokens seen, loss."""

  step: int
  tokens: int
  loss: float


@dataclass(frozen=True)
class Row:
  """One way to get a model out of the trail, and how good it is.

  Attributes:
    name: "last", "step_<n>", "uniform", "rna", a baseline's or the search
      method's.
    evaluations: forward passes over the search split to choose it; a
      derivative counts as those that it costs.
    search_loss: on the split used for the choice.
    report_loss: on the split that the choice never saw.
    report_delta_vs_last: report_loss minus that of "last".
    report_delta_stderr: paired standard error of that difference.
    report_clusters: of items that are alike (documents), which it is from.
  """

  name: str
  evaluations: int
  weights: Mapping[int, float]
  search_loss: float
  report_loss: float
  report_delta_vs_last: float
  report_delta_stderr: float
  report_clusters: int

  @property
  def delta(self) -> Estimate:
    """The difference to "last" on the report split."""
    stderr = self.report_delta_stderr
    return Estimate(self.report_delta_vs_last, stderr, self.report_clusters)

  @property
  def steps(self) -> tuple[int, ...]:
    """Training steps of the checkpoints with a weight, increasing."""
    return tuple(step for step, w in sorted(self.weights.items()) if w != 0)

  @property
  def is_single(self) -> bool:
    """Says whether the row is of a checkpoint as the run saved it."""
    return self.name == "last" or self.name.startswith("step_")

  @property
  def is_significant(self) -> bool:
    """Says whether the difference's 95% interval leaves out 0."""
    return self.delta.p_value < 1 - LEVEL


@dataclass(frozen=True)
class Precision:
  """Certainty of the weights, as far as the search split tells them.

  Attributes:
    advice: what would bring better ones, or why nothing is known.
    excess: expected loss above that of the best weights, nats/token; None where
      it is not known.
    weights, stderr: of the search's merge by group and step; empty then.
    passes: forward passes of the search split that it took beside the trials.
  """

  advice: str
  excess: float | None = None
  weights: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
  stderr: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
  passes: float = 0.0

  @property
  def cost(self) -> str:
    """Says what a finite split costs; "" where it is not known."""
    if self.excess is None:
      return ""
    return (
      "More trials on this split cannot gain what its finite size costs: about"
      f" {1e3 * self.excess:.2g} millinats/token."
    )


@dataclass(frozen=True)
class Results:
  """The findings of a search.

  Attributes:
    rows: in the order in which they are shown, "last" first, the search last.
    trials: by number, at least one with a loss.
    best: number of the one that was chosen; None where the merge was not tried.
    tokens_trained: at the last merged checkpoint; 0 where that is not known.
    tokens_saved: as from tokens_saved().
    unit, direction: of every loss here and in the trials.
    study: the name of the search's.
    precision: of the weights; None of scores without derivatives by them.
    objective: what was sought, of a search of tasks; else "".
    constraint: on its tasks; "": none.
    tasks: of such a search.
  """

  rows: Sequence[Row]
  trials: Sequence[Trial]
  best: int | None
  tokens_trained: int
  tokens_saved: int | None
  unit: str
  direction: Direction
  study: str
  precision: Precision | None = None
  objective: str = ""
  constraint: str = ""
  tasks: Sequence[TaskRow] = ()

  @property
  def is_kept(self) -> bool:
    """Says whether a scored trial keeps to the constraint."""
    return any(not trial.breaks for trial in self.scored)

  @property
  def noun(self) -> str:
    """The word for a loss."""
    return noun(self.direction)

  @property
  def better(self) -> str:
    return "lower" if self.direction == "minimize" else "higher"

  @property
  def best_word(self) -> str:
    return "lowest" if self.direction == "minimize" else "highest"

  def as_loss(self, values: Any) -> Any:
    """Values of which less is better; its own inverse."""
    return as_loss(values, self.direction)

  @property
  def last(self) -> Row:
    return self.rows[0]

  @property
  def merged(self) -> Row:
    return self.rows[-1]

  @property
  def steps(self) -> list[int]:
    """Training steps of the merged checkpoints, increasing."""
    return sorted(self.merged.weights)

  @property
  def shown(self) -> list[Row]:
    """The rows for a first look: without the folded ones."""
    folded = self.folded
    return [row for row in self.rows if row not in folded]

  @property
  def folded(self) -> list[Row]:
    """The checkpoints alone that are neither merged nor next to merged ones.

    Of many merged ones, those too that weigh least in the search's merge.
    """
    weights = self.merged.weights
    alone = [row for row in self.rows if row.is_single]
    trail = sorted(alone, key=lambda row: row.steps)
    is_merged = [row.steps[0] in weights for row in trail]
    near = [
      row
      for i, row in enumerate(trail)
      if any(is_merged[max(i - 1, 0) : i + 2])
    ]

    def rank(row: Row) -> tuple[bool, bool, float, int]:
      [step] = row.steps
      weight = abs(weights.get(step, 0.0))
      return row is not self.last, step not in weights, -weight, -step

    kept = sorted(near, key=rank)[:_MOST_SINGLE]
    return [row for row in alone if row not in kept]

  @property
  def chosen(self) -> Trial:
    """The trial whose merge is the last row; of none, as if it were one."""
    merged = self.merged
    made_up = Trial(-1, merged.weights, merged.search_loss, 0.0, "")
    return next((t for t in self.trials if t.number == self.best), made_up)

  @property
  def chosen_weights(self) -> list[float]:
    """Those of the steps; a one-hot weight may leave out the others."""
    return [self.chosen.weights.get(step, 0.0) for step in self.steps]

  @property
  def scored(self) -> list[Trial]:
    """The trials with a loss."""
    return [trial for trial in self.trials if not trial.failure]


def write_results(path: epath.PathLike, results: Results) -> None:
  """Writes results.json, every float so that it reads back bit for bit.

  Raises:
    InputError: a number is not finite; names each.
  """
  problems = [
    f"rows[{index}].{name} is not finite: {value!r}"
    for index, row in enumerate(results.rows)
    for name, value in vars(row).items()
    if isinstance(value, float) and not math.isfinite(value)
  ]
  if (known := results.precision) is not None:
    rows = known.stderr.values()
    numbers = [
      known.excess or 0.0,
      *(se for row in rows for se in row.values()),
    ]
    if not all(map(math.isfinite, numbers)):
      problems.append("precision is not finite")
  check(problems)
  value: dict[str, Any] = {
    "study": results.study,
    "rows": [
      {name.replace("loss", results.noun): v for name, v in vars(row).items()}
      for row in results.rows
    ],
    "tokens_trained": results.tokens_trained,
    "tokens_saved": results.tokens_saved,
  }
  if results.objective:
    value["objective"] = results.objective
    value["constraint"] = results.constraint
    value["tasks"] = [row._asdict() for row in results.tasks]
  if known is not None:
    value["precision"] = {
      "stderr": known.stderr,
      "excess": known.excess,
      "advice": known.advice,
      "passes": known.passes,
    }
  write_json(path, value)


def tokens_saved(
  merged_loss: float, later: Sequence[Point], direction: Direction = "minimize"
) -> int | None:
  """Tokens that the run needs after the merge to be as good as the merge.

  Between two of the run's own checkpoints the loss is taken to be linear in
  tokens; the first crossing counts.

  Args:
    merged_loss: report loss of the merged model.
    later: report losses of the run's checkpoints, from the last merged one on.
    direction: of the losses.

  Returns:
    Tokens, rounded; 0 when the last merged checkpoint is already as good; None
    when the run never gets there.
  """
  merged_loss = as_loss(merged_loss, direction)
  later = [p._replace(loss=as_loss(p.loss, direction)) for p in later]
  if later[0].loss <= merged_loss:
    return 0
  for a, b in itertools.pairwise(later):
    # The first crossing from above: a.loss is still above merged_loss here.
    if b.loss <= merged_loss:
      share = (a.loss - merged_loss) / (a.loss - b.loss)
      return round(a.tokens + share * (b.tokens - a.tokens)) - later[0].tokens
  return None
