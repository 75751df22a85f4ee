"""Tells in words and in a table no more than a search has found."""

from collections.abc import Mapping

from jaxmerge.reporting.results import Results, Row
from jaxmerge.simplex.labels import all_weights

_RIGHT_ALIGNED = (False, True, False, True, True, True)


def columns(results: Results) -> tuple[str, ...]:
  return (
    "name",
    "evaluations",
    "weights",
    f"search {results.noun}",
    f"report {results.noun}",
    "delta vs last ± 2 stderr",
  )


def note(results: Results) -> str:
  better = "negative" if results.better == "lower" else "positive"
  nouns = "Losses" if results.noun == "loss" else "Scores"
  return (
    f"{nouns} in {results.unit}; delta on the report split, {better} is better;"
    " * = beyond two paired standard errors."
  )


def format_weights(weights: Mapping[int, float]) -> str:
  """For example "600: 0.350, 750: 0.650"; one checkpoint alone is its step."""
  kept = {step: weight for step, weight in weights.items() if weight != 0}
  if list(kept.values()) == [1.0]:
    return f"{next(iter(kept))}"
  return all_weights(weights)


def cells(row: Row) -> tuple[str, ...]:
  """One string for each of the columns."""
  delta = "reference"
  if row.name != "last":
    mark = "*" if row.is_significant else " "
    stderr = 2 * row.report_delta_stderr
    delta = f"{row.report_delta_vs_last:+.4f} ± {stderr:.4f} {mark}"
  losses = f"{row.search_loss:.4f}", f"{row.report_loss:.4f}"
  weights = format_weights(row.weights)
  return (row.name, f"{row.evaluations}", weights, *losses, delta)


def text_table(results: Results) -> str:
  """The table for a terminal, columns aligned with spaces."""
  rows = [columns(results), *map(cells, results.rows)]
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
      f" {results.better} search {results.noun}."
    )
  subject = _subject(merged)
  delta = merged.report_delta_vs_last
  amount = f"± {2 * merged.report_delta_stderr:.4f} {results.unit}"
  if not merged.is_significant:
    return (
      f"{subject} shows no measurable gain over step {last_step}: the report"
      f" {results.noun} differs by {delta:+.4f} {amount}, which is within two"
      " paired standard errors."
    )
  found = (
    f"{subject} {'raises' if delta > 0 else 'lowers'} the report"
    f" {results.noun} by {abs(delta):.4f} {amount} (two paired standard errors)"
  )
  if results.as_loss(delta) > 0:
    return f"{found}: the merged model is worse than step {last_step}."
  tokens = f"no checkpoint of the run itself reaches that {results.noun}"
  if results.tokens_saved is not None:
    tokens = f"the run needs {results.tokens_saved:,} more tokens to get there"
  return f"{found} against step {last_step}; {tokens}."


def runner_up(results: Results) -> str:
  """A sentence about a row with a lower report loss than the merge, or ""."""
  merged = results.merged
  best = min(results.rows, key=lambda row: results.as_loss(row.report_loss))
  if results.as_loss(best.report_loss - merged.report_loss) >= 0:
    return ""
  single = best.is_single
  name = f"step {best.steps[0]} alone" if single else f"the row {best.name}"
  return (
    f"On the report split {name} has a {results.better} {results.noun} than"
    f" the model that the search chose: {best.report_loss:.4f} against"
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
