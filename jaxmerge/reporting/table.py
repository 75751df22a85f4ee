"""What a search has found, in words and as a table, and no more than that."""

from collections.abc import Mapping

from jaxmerge.reporting.results import Results, Row

COLUMNS = (
  "name",
  "evaluations",
  "weights",
  "search loss",
  "report loss",
  "delta vs last ± 2 stderr",
)
# Of more weights than this the largest are told.
_TOLD = 3
_RIGHT_ALIGNED = (False, True, False, True, True, True)


def note(results: Results) -> str:
  return (
    f"Losses in {results.unit}; delta on the report split, negative is better;"
    " * = beyond two paired standard errors."
  )


def format_weights(weights: Mapping[int, float]) -> str:
  """For example "600: 0.350, 750: 0.650"; one checkpoint alone is its step."""
  kept = {step: weight for step, weight in weights.items() if weight != 0}
  if list(kept.values()) == [1.0]:
    return f"{next(iter(kept))}"
  return all_weights(weights)


def all_weights(weights: Mapping[int, float]) -> str:
  """The weights of up to three checkpoints; of more what fits in a line.

  Equal ones are "12 x 0.083"; else weights of zero are left out, and of the
  rest all but the three largest are counted: "600: 0.350, ... and 9 others".
  """
  told = dict(sorted(weights.items()))
  others = ""
  if len(told) > _TOLD:
    told = {step: w for step, w in told.items() if f"{abs(w):.3f}" != "0.000"}
    texts = {f"{w:.3f}" for w in told.values()}
    if len(told) > _TOLD and len(texts) == 1:
      return f"{len(told)} x {texts.pop()}"
    largest = sorted(told, key=lambda step: -abs(told[step]))[:_TOLD]
    if len(told) > _TOLD + 1:
      others = f" and {len(told) - _TOLD} others"
      told = {step: w for step, w in told.items() if step in largest}
  return ", ".join(f"{step}: {w:.3f}" for step, w in told.items()) + others


def cells(row: Row) -> tuple[str, ...]:
  """One string for each of COLUMNS."""
  delta = "reference"
  if row.name != "last":
    mark = "*" if row.is_significant else " "
    stderr = 2 * row.report_delta_stderr
    delta = f"{row.report_delta_vs_last:+.4f} ± {stderr:.4f} {mark}"
  return (
    row.name,
    f"{row.evaluations}",
    format_weights(row.weights),
    f"{row.search_loss:.4f}",
    f"{row.report_loss:.4f}",
    delta,
  )


def text_table(results: Results) -> str:
  """The table for a terminal, columns aligned with spaces."""
  rows = [COLUMNS, *map(cells, results.rows)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [
    "  ".join(
      cell.rjust(width) if right else cell.ljust(width)
      for cell, width, right in zip(row, widths, _RIGHT_ALIGNED)
    )
    for row in rows
  ]
  rule = "-" * max(map(len, lines))
  return "\n".join([lines[0], rule, *lines[1:], rule, note(results)]) + "\n"


def headline(results: Results) -> str:
  """The finding in one or two sentences.

  A gain (or a loss) is claimed only beyond two paired standard errors, and the
  tokens saved only with a gain.
  """
  merged, last = results.merged, results.last
  (last_step,) = last.steps
  if merged.steps == last.steps:
    return (
      f"The search kept step {last_step} alone: no merge that it tried has a"
      " lower search loss."
    )
  subject = _subject(merged)
  delta = merged.report_delta_vs_last
  amount = f"± {2 * merged.report_delta_stderr:.4f} {results.unit}"
  if not merged.is_significant:
    return (
      f"{subject} shows no measurable gain over step {last_step}: the report"
      f" loss differs by {delta:+.4f} {amount}, which is within two paired"
      " standard errors."
    )
  if delta > 0:
    return (
      f"{subject} raises the report loss by {delta:.4f} {amount} (two paired"
      f" standard errors): the merged model is worse than step {last_step}."
    )
  tokens = "no checkpoint of the run itself reaches that loss"
  if results.tokens_saved is not None:
    tokens = f"the run needs {results.tokens_saved:,} more tokens to get there"
  return (
    f"{subject} lowers the report loss by {-delta:.4f} {amount} (two paired"
    f" standard errors) against step {last_step}; {tokens}."
  )


def runner_up(results: Results) -> str:
  """A sentence about a row that beats gp_hedge on the report split, or ""."""
  merged = results.merged
  best = min(results.rows, key=lambda row: row.report_loss)
  if best.report_loss >= merged.report_loss:
    return ""
  name = (
    f"step {best.steps[0]} alone"
    if best.is_single
    else (f"the row {best.name}")
  )
  return (
    f"On the report split {name} has a lower loss than the model"
    f" that the search chose: {best.report_loss:.4f} against"
    f" {merged.report_loss:.4f} {results.unit}."
  )


def _subject(row: Row) -> str:
  """For example "Merging steps 600 and 750 (0.350 / 0.650)"."""
  *others, final = map(str, row.steps)
  if not others:
    return f"Taking step {final} alone"
  if len(others) > 2:
    return f"Merging {len(row.steps)} steps ({all_weights(row.weights)})"
  shares = " / ".join(f"{row.weights[step]:.3f}" for step in row.steps)
  return f"Merging steps {', '.join(others)} and {final} ({shares})"
