"""report.html, one page that needs nothing but itself, and its directory."""

import base64
import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence

import jinja2
from etils import epath

from jaxmerge.errors import InputError, check
from jaxmerge.files import files_of_directory
from jaxmerge.reading import read_file
from jaxmerge.reporting import table
from jaxmerge.reporting.results import Results, write_results

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
      something else under the name of one of these files or cannot be written.
  """
  directory = epath.Path(directory)
  page = _template().render(
    title=title,
    results=results,
    table=table,
    images={
      name: base64.b64encode(image).decode() for name, image in figures.items()
    },
    known=FIGURES,
    facts=facts,
    commands=commands,
  )
  check_report_directory(directory)
  try:
    with files_of_directory(directory, first=PAGE) as folder:
      write_results(folder / RESULTS, results)
      for name, image in figures.items():
        (folder / f"{name}.png").write_bytes(image)
      (folder / PAGE).write_bytes(page.encode())
    for name in set(FIGURES) - figures.keys():
      (directory / f"{name}.png").unlink(missing_ok=True)
  except OSError as error:
    raise InputError(
      f"cannot write to {directory}: {error.strerror or error}"
    ) from error
  return directory / PAGE


def _template() -> jinja2.Template:
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.tests["finite"] = math.isfinite
  template = importlib.resources.files(__package__) / "report.html.jinja"
  return environment.from_string(template.read_text("utf-8"))


def check_report_directory(directory: epath.PathLike) -> None:
  """Refuses a directory in which a report would replace another's files.

  Raises:
    InputError: it is a file, or something else than an earlier report has the
      name of one of a report's files.
  """
  directory = epath.Path(directory)
  try:
    check(_directory_problems(directory))
  except OSError as error:
    raise InputError(
      f"cannot read {directory}: {error.strerror or error}"
    ) from error


def _directory_problems(directory: epath.Path) -> list[str]:
  if not directory.exists():
    return []
  if not directory.is_dir():
    return [f"the report's directory {directory} is a file"]
  page = _content(directory / PAGE)
  is_report = any(mark in page for mark in _MARKS)
  is_ours = {PAGE: is_report, RESULTS: _is_results(directory / RESULTS)}
  for name in (f"{name}.png" for name in FIGURES):
    is_ours[name] = is_report and not (directory / name).is_dir()
  return [
    f"{directory / name} is not of an earlier report, which is to be written "
    "there"
    for name, ours in is_ours.items()
    if not ours and (directory / name).exists()
  ]


def _content(path: epath.Path) -> bytes:
  """Nothing of what cannot be read, which is no file of a report."""
  try:
    return read_file(path)
  except OSError:
    return b""


def _is_results(path: epath.Path) -> bool:
  """Says whether it is a results.json, of any version."""
  try:
    value = json.loads(_content(path))
    return "last" in [row["name"] for row in value["rows"]]
  except (ValueError, TypeError, KeyError, RecursionError):
    return False
