"""Which files of a directory are those of a report."""

import json

from etils import epath

from jaxmerge.errors import InputError, check
from jaxmerge.reading import read_file
from jaxmerge.reporting.captions import FIGURES

PAGE, RESULTS = "report.html", "results.json"
# What tells a report of ours: its generator, and in older ones this table.
_MARKS = (
  b'<meta name="generator" content="jaxmerge">',
  b'<h2>The run</h2>\n<table class="facts">',
)


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
  is_report = _is_page(directory / PAGE)
  names = [f"{name}.png" for name in FIGURES]
  theirs = [
    *([] if is_report else [PAGE]),
    *([] if _is_results(directory / RESULTS) else [RESULTS]),
    *(n for n in names if not is_report or (directory / n).is_dir()),
  ]
  return [
    f"{directory / name} is not of an earlier report, which is to be written "
    "there"
    for name in theirs
    if (directory / name).exists()
  ]


def _is_page(path: epath.Path) -> bool:
  try:
    page = read_file(path)
  except OSError:
    return False
  return any(mark in page for mark in _MARKS)


def _is_results(path: epath.Path) -> bool:
  """Whether it is a results.json, of any version."""
  try:
    value = json.loads(read_file(path))
    return "last" in [row["name"] for row in value["rows"]]
  except (OSError, ValueError, TypeError, KeyError, RecursionError):
    return False
