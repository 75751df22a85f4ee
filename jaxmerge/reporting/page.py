"""report.html, one page that needs nothing but itself, and its directory.

Its words and its table tell no more than a search has found.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence

import jinja2
from etils import epath

from jaxmerge.errors import InputError, check
from jaxmerge.files import files_of_directory
from jaxmerge.reading import read_file
from jaxmerge.reporting.results import Results, Row, write_results
from jaxmerge.simplex.labels import all_weights, without_zeros

PAGE, RESULTS = "report.html", "results.json"
# A report has some of these; the page explains each.
FIGURES = (
  "baselines",
  "training_curve",
  "posterior",
  "ternary",
  "slices",
  "convergence",
  "hedge",
  "calibration",
)
# Of more weights than these the page shows the largest; the choice has all.
_MOST_WEIGHTS = 6
# A report of ours has its generator, an older one this table.
_MARKS = (
  b'<meta name="generator" content="jaxmerge">',
  b'<h2>The run</h2>\n<table class="facts">',
)


def write_report(
  directory: epath.PathLike,
  *,
  title: str,
  results: Results,
  figures: Mapping[str, bytes],
  facts: Mapping[str, str],
  commands: Sequence[str],
) -> epath.Path:
  """Writes report.html, its PNG figures and results.json, each whole.

  The same arguments give the same bytes.

  Args:
    directory: may hold an earlier report, which is replaced, and other files,
      which stay.
    title: of the page.
    results: of the search.
    figures: PNG bytes by name; those left out have no section.
    facts: about the run, in the order in which they are listed.
    commands: to type to get this report again.

  Returns:
    The path of report.html.

  Raises:
    InputError: a number of the results is not finite, or the directory holds
      another study's report, or something else under the name of one of these
      files, or cannot be written.
  """
  directory = epath.Path(directory)
  page = _template().render(
    title=title,
    results=results,
    headline=headline(results),
    runner_up=runner_up(results),
    note=note(results),
    columns=columns(results),
    cells=cells,
    format_weights=_page_weights,
    images={
      name: base64.b64encode(image).decode() for name, image in figures.items()
    },
    known=FIGURES,
    facts=facts,
    commands=commands,
  )
  check_report_directory(directory, results.study)
  with files_of_directory(directory, first=PAGE) as folder:
    write_results(folder / RESULTS, results)
    for name, image in figures.items():
      (folder / f"{name}.png").write_bytes(image)
    (folder / PAGE).write_bytes(page.encode())
  for name in set(FIGURES) - figures.keys():
    (directory / f"{name}.png").unlink(missing_ok=True)
  return directory / PAGE


def _template() -> jinja2.Template:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__, ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.tests["finite"] = math.isfinite
  return environment.get_template("report.html.jinja")


def check_report_directory(directory: epath.PathLike, study: str) -> None:
  """Refuses a directory in which a report would replace another's files.

  Raises:
    InputError: it is a file, or has the report of another study, or something
      else than an earlier report has the name of one of a report's files.
  """
  directory = epath.Path(directory)
  try:
    check(_directory_problems(directory, study))
  except OSError as error:
    raise InputError(
      f"cannot read {directory}: {error.strerror or error}"
    ) from error


def _directory_problems(directory: epath.Path, study: str) -> list[str]:
  if not directory.exists():
    return []
  if not directory.is_dir():
    return [f"the report's directory {directory} is a file"]
  page = _content(directory / PAGE)
  is_report = any(mark in page for mark in _MARKS)
  there = _study_of(directory / RESULTS)
  if there not in (None, "", study):
    return [
      f"{directory} has the report of the study {there!r}, not of {study!r}: "
      "choose another config.report_dir, or none for one of the study's own"
    ]
  is_ours = {PAGE: is_report, RESULTS: there is not None}
  for name in (f"{name}.png" for name in FIGURES):
    is_ours[name] = is_report and not (directory / name).is_dir()
  end = "is not of an earlier report, which is to be written there"
  return [
    f"{directory / name} {end}"
    for name, ours in is_ours.items()
    if not ours and (directory / name).exists()
  ]


def _content(path: epath.Path) -> bytes:
  """Nothing of what cannot be read, which is no file of a report."""
  try:
    return read_file(path)
  except OSError:
    return b""


def _study_of(path: epath.Path) -> str | None:
  """The study of a results.json, "" of an older one, None of anything else."""
  try:
    value = json.loads(_content(path))
    if "last" in [row["name"] for row in value["rows"]]:
      return str(value.get("study", ""))
  except (ValueError, TypeError, KeyError, RecursionError):
    pass
  return None


def columns(results: Results) -> tuple[str, ...]:
  return (
    "name",
    "evaluations",
    f"search {results.noun}",
    f"report {results.noun}",
    "delta vs last ± 95%",
    "weights",
  )


def note(results: Results) -> str:
  better = "negative" if results.better == "lower" else "positive"
  nouns = "Losses" if results.noun == "loss" else "Scores"
  return (
    f"{nouns} in {results.unit}; delta on the report split, {better} is better;"
    " * = its 95% interval (paired, Student's t) leaves out 0."
  )


def format_weights(weights: Mapping[int, float], most: int = 3) -> str:
  """For example "600: 0.3500, 750: 0.6500"; a checkpoint alone is its step."""
  kept = without_zeros(weights)
  if list(kept.values()) == [1.0]:
    return f"{next(iter(kept))}"
  return all_weights(kept, most)


def _page_weights(weights: Mapping[int, float], is_chosen: bool) -> str:
  """All that were chosen; a line may break between two, never in one."""
  most = len(weights) if is_chosen else _MOST_WEIGHTS
  text = format_weights(weights, most)
  for words in (": ", " others"):
    text = text.replace(words, words.replace(" ", "\u00a0"))
  return text


def cells(row: Row) -> tuple[str, ...]:
  """One string for each of the columns, the weights in short."""
  delta = "reference"
  if row.name != "last":
    mark = "*" if row.is_significant else " "
    delta = (
      f"{row.report_delta_vs_last:+.4f} ± {row.delta.half_width():.4f} {mark}"
    )
  losses = f"{row.search_loss:.4f}", f"{row.report_loss:.4f}"
  weights = format_weights(row.weights)
  return (row.name, f"{row.evaluations}", *losses, delta, weights)


def text_table(results: Results) -> str:
  """The table for a terminal, columns aligned with spaces."""
  rows = [columns(results), *map(cells, results.shown)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  forms = [f"{a}{width}" for a, width in zip("<>>>><", widths)]
  lines = ["  ".join(map(format, row, forms)).rstrip() for row in rows]
  rule = "-" * max(map(len, lines))
  if count := len(results.folded):
    lines.append(f"({count} other checkpoints alone: in the report)")
  return "\n".join([lines[0], rule, *lines[1:], rule, note(results)]) + "\n"


def headline(results: Results) -> str:
  """The finding in one or two sentences.

  A gain (or a loss) is claimed only where its 95% interval leaves out 0, and
  the tokens saved only with a gain.
  """
  merged, last = results.merged, results.last
  (last_step,) = last.steps
  if not results.is_kept:
    return (
      f"The search kept step {last_step} alone: no merge that it tried keeps to"
      f" this: {results.constraint}."
    )
  if merged.steps == last.steps:
    within = " within its limits" if results.constraint else ""
    return (
      f"The search kept step {last_step} alone: no merge{within} that it tried"
      f" has a {results.better} search {results.noun}."
    )
  subject = _subject(merged)
  delta = merged.report_delta_vs_last
  amount = f"± {merged.delta.half_width():.4f} {results.unit}"
  if not merged.is_significant:
    return (
      f"{subject} shows no measurable gain over step {last_step}: the report"
      f" {results.noun} differs by {delta:+.4f} {amount}, a 95% interval that"
      " holds 0."
    )
  found = (
    f"{subject} {'raises' if delta > 0 else 'lowers'} the report"
    f" {results.noun} by {abs(delta):.4f} {amount} (95% interval)"
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
  """For example "Merging steps 600 and 750 (0.3500 / 0.6500)"."""
  kept = without_zeros(row.weights)
  *others, final = map(str, kept)
  if not others:
    return f"Taking step {final} alone"
  if len(others) > 2:
    return f"Merging {len(kept)} steps ({all_weights(kept)})"
  shares = " / ".join(f"{weight:.4f}" for weight in kept.values())
  return f"Merging steps {', '.join(others)} and {final} ({shares})"
