"""results.json: one row per baseline, read strictly and written exactly."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from etils import epath

from jaxmerge.errors import InputError, check
from jaxmerge.files import write_json
from jaxmerge.reporting import results_shape

# The reason of a trial that was given up as clearly not the best.
STOPPED_EARLY = "stopped early"


class Trial(NamedTuple):
  """One question of a search, scored or not.

  Attributes:
    number: the trial's number in the study, from 0.
    weights: weight of each checkpoint, by training step.
    loss: search loss in nats per token; of a trial with a `failure` what it
      had so far, or nan.
    stderr: paired standard error of `loss` against trial 0, nats per token.
    asked_by: "start", "ei", "pi", "ucb", "thompson" or "explore".
    odds: probability that GP-Hedge gave each acquisition when the trial was
      asked; empty for a start.
    predicted_mean: the loss that the process expected before the trial was
      scored, nats per token; None where it was not asked.
    predicted_std: standard deviation of that prediction, of the loss's known
      noise too.
    failure: why the trial has no loss, "" where it has one.
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


@dataclass(frozen=True)
class Row:
  """One way to get a model out of the trail, and how good it is.

  Attributes:
    name: "last", "step_<n>", "uniform", "grid" or "gp_hedge".
    evaluations: how many times the search split was scored to choose it.
    weights: weight of each checkpoint, by training step.
    search_loss: nats per token on the split used for the choice.
    report_loss: nats per token on the split that the choice never saw.
    report_delta_vs_last: report_loss minus that of "last"; negative is better.
    report_delta_stderr: paired standard error of that difference, clustered by
      document.
  """

  name: str
  evaluations: int
  weights: Mapping[int, float]
  search_loss: float
  report_loss: float
  report_delta_vs_last: float
  report_delta_stderr: float

  @property
  def steps(self) -> tuple[int, ...]:
    """Training steps of the checkpoints with a weight, increasing."""
    return tuple(step for step, w in sorted(self.weights.items()) if w != 0)

  @property
  def significant(self) -> bool:
    """Whether the difference to "last" is beyond two standard errors."""
    return abs(self.report_delta_vs_last) > 2 * self.report_delta_stderr


@dataclass(frozen=True)
class Results:
  """The content of results.json.

  Attributes:
    rows: in the order in which they are shown; one of them is "last".
    tokens_trained: tokens that the run had trained on at its last merged
      checkpoint.
    tokens_saved: more tokens that the run needs to reach the merged loss; None
      when it never reaches it.
  """

  rows: tuple[Row, ...]
  tokens_trained: int
  tokens_saved: int | None

  def row(self, name: str) -> Row:
    """The row of that name.

    Raises:
      InputError: there is none.
    """
    for row in self.rows:
      if row.name == name:
        return row
    raise InputError(f'the results have no row "{name}"')


def write_results(path: epath.PathLike, results: Results) -> None:
  """Writes results.json, every float so that it reads back bit for bit.

  Raises:
    InputError: a number is not finite, or the rows are not well formed.
  """
  value = _to_json(results)
  check(results_shape.problems(value))
  write_json(path, value)


def read_results(path: epath.PathLike) -> Results:
  """Reads what `write_results` wrote.

  Raises:
    InputError: the file cannot be read, or is not of the exact shape; lists
      every problem.
  """
  path = epath.Path(path)
  repeated: list[str] = []

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    repeated.extend(
      f'key "{key}" is given twice'
      for key in dict.fromkeys(keys)
      if keys.count(key) > 1
    )
    return dict(pairs)

  try:
    value = json.loads(path.read_text(), object_pairs_hook=unique)
  except OSError as error:
    raise InputError(
      f"cannot read {path}: {error.strerror or error}"
    ) from error
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path} is not JSON: {error}") from error
  problems = repeated + results_shape.problems(value)
  check(f"{path}: {problem}" for problem in problems)
  return Results(
    rows=tuple(_row_from_json(row) for row in value["rows"]),
    tokens_trained=value["tokens_trained"],
    tokens_saved=value["tokens_saved"],
  )


def tokens_saved(
  merged_loss: float,
  merged_tokens: int,
  later: Sequence[tuple[int, float]],
) -> int | None:
  """Tokens that the run needs after the merge to be as good as the merge.

  Between two of the run's own checkpoints the loss is taken to be linear in
  tokens; the first crossing counts.

  Args:
    merged_loss: report loss of the merged model, nats per token.
    merged_tokens: tokens of the last checkpoint that went into the merge.
    later: (tokens, report loss) of the run's checkpoints, from that last merged
      checkpoint on, in the order of training.

  Returns:
    Tokens, rounded; 0 when the last merged checkpoint is already as good; None
    when the run never gets there.

  Raises:
    InputError: `later` does not start at `merged_tokens`, is out of order, or
      a loss is not finite.
  """
  problems = []
  tokens = [point[0] for point in later]
  if not tokens or tokens[0] != merged_tokens:
    problems.append(
      f"the checkpoints must start with the last merged one, at {merged_tokens}"
      f" tokens, not at {tokens[0] if tokens else 'none'}"
    )
  if any(b <= a for a, b in zip(tokens, tokens[1:])):
    problems.append(f"the checkpoints' tokens do not increase: {tokens}")
  if not all(map(math.isfinite, [merged_loss, *(loss for _, loss in later)])):
    problems.append("a loss is not a finite number")
  check(problems)
  if later[0][1] <= merged_loss:
    return 0
  for (tokens_a, loss_a), (tokens_b, loss_b) in zip(later, later[1:]):
    # The first crossing from above: loss_a is still above merged_loss here.
    if loss_b <= merged_loss:
      share = (loss_a - merged_loss) / (loss_a - loss_b)
      return round(tokens_a + share * (tokens_b - tokens_a)) - merged_tokens
  return None


def _to_json(results: Results) -> dict[str, Any]:
  rows = []
  for row in results.rows:
    value = {key: getattr(row, key) for key in results_shape.ROW_KEYS}
    value["weights"] = {
      str(step): weight for step, weight in sorted(row.weights.items())
    }
    rows.append(value)
  return {
    "rows": rows,
    "tokens_trained": results.tokens_trained,
    "tokens_saved": results.tokens_saved,
  }


def _row_from_json(value: Mapping[str, Any]) -> Row:
  return Row(
    name=value["name"],
    evaluations=value["evaluations"],
    weights={int(step): float(w) for step, w in value["weights"].items()},
    search_loss=float(value["search_loss"]),
    report_loss=float(value["report_loss"]),
    report_delta_vs_last=float(value["report_delta_vs_last"]),
    report_delta_stderr=float(value["report_delta_stderr"]),
  )
