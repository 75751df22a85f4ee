"""The table of baselines; text, Markdown and HTML share one formatter."""

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
_TOLD = 3
_RIGHT_ALIGNED = (False, True, False, True, True, True)
NOTE = (
  "Losses in nats/token; delta on the report split, negative is better;"
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


def format_delta(row: Row) -> str:
  """For example "-0.0271 ± 0.0044 *", the star beyond two standard errors."""
  if row.name == "last":
    return "reference"
  mark = "*" if row.significant else " "
  stderr = 2 * row.report_delta_stderr
  return f"{row.report_delta_vs_last:+.4f} ± {stderr:.4f} {mark}"


def cells(results: Results) -> list[tuple[str, ...]]:
  """One tuple of strings per row, in the order of COLUMNS."""
  return [
    (
      row.name,
      f"{row.evaluations}",
      format_weights(row.weights),
      f"{row.search_loss:.4f}",
      f"{row.report_loss:.4f}",
      format_delta(row),
    )
    for row in results.rows
  ]


def text_table(results: Results) -> str:
  """The table for a terminal, columns aligned with spaces."""
  lines = _aligned(cells(results))
  rule = "-" * max(map(len, lines))
  return "\n".join([lines[0], rule, *lines[1:], rule, NOTE]) + "\n"


def _aligned(body: list[tuple[str, ...]]) -> list[str]:
  rows = [COLUMNS, *body]
  widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
  return [
    "  ".join(
      cell.rjust(width) if right else cell.ljust(width)
      for cell, width, right in zip(row, widths, _RIGHT_ALIGNED)
    )
    for row in rows
  ]
