"""report.html: one page that needs nothing but itself."""

import base64
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2
from etils import epath

from jaxmerge.errors import InputError, check
from jaxmerge.files import files_of_directory
from jaxmerge.reporting import table
from jaxmerge.reporting.captions import FIGURES
from jaxmerge.reporting.headline import headline, runner_up
from jaxmerge.reporting.report_directory import (
  PAGE,
  RESULTS,
  check_report_directory,
)
from jaxmerge.reporting.results import Results, Row, Trial, write_results

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class _Picture(NamedTuple):
  file: str
  uri: str
  alt: str
  caption: str
  heading: str


def write_report(
  directory: epath.PathLike,
  *,
  title: str,
  results: Results,
  figures: Mapping[str, bytes | epath.PathLike],
  facts: Mapping[str, object],
  commands: Sequence[str],
  trials: Sequence[Trial],
) -> epath.Path:
  """Writes report.html, its PNG figures and results.json, each whole.

  The same arguments give the same bytes.

  Args:
    directory: may hold an earlier report, which is replaced, and other files,
      which stay.
    title: of the page.
    results: has the rows "last" and "gp_hedge".
    figures: PNG bytes, or the path of a PNG file, by name: "baselines",
      "training_curve", "posterior", "ternary", "slices", "convergence",
      "hedge", "calibration"; those left out have no section.
    facts: what the run was (corpus, parameters, devices, versions), in the
      order in which they are listed.
    commands: what a reader types to get this report again.
    trials: the search's questions, in the order of their numbers, those
      without a loss too.

  Returns:
    The path of report.html.

  Raises:
    InputError: a figure is unknown, missing or no PNG, the results are not well
      formed, the chosen weights are no trial's, or the directory holds
      something else under the name of one of these files or cannot be written.
  """
  directory = epath.Path(directory)
  images = _read_figures(figures)
  page = _render(title, results, images, facts, commands, trials)
  check_report_directory(directory)
  try:
    with files_of_directory(directory, first="report.html") as folder:
      write_results(folder / RESULTS, results)
      for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
      (folder / PAGE).write_bytes(page.encode())
    for name in FIGURES.keys() - images.keys():
      (directory / f"{name}.png").unlink(missing_ok=True)
  except OSError as error:
    raise InputError(
      f"cannot write to {directory}: {error.strerror or error}"
    ) from error
  return directory / PAGE


def _render(
  title: str,
  results: Results,
  images: Mapping[str, bytes],
  facts: Mapping[str, object],
  commands: Sequence[str],
  trials: Sequence[Trial],
) -> str:
  merged = results.row("gp_hedge")
  template = (
    importlib.resources.files("jaxmerge.reporting")
    .joinpath("report.html.jinja")
    .read_text(encoding="utf-8")
  )
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  return environment.from_string(template).render(
    title=title,
    headline=headline(results),
    runner_up=runner_up(results),
    results=results,
    last_step=results.row("last").steps[0],
    columns=table.COLUMNS,
    rows=table.cells(results),
    note=table.NOTE,
    pictures={name: _picture(name, image) for name, image in images.items()},
    trials=[_trial_cells(trial) for trial in trials],
    chosen=_chosen(merged, trials) if trials else None,
    facts={name: _fact(value) for name, value in facts.items()},
    commands=commands,
  )


def _read_figures(
  figures: Mapping[str, bytes | epath.PathLike],
) -> dict[str, bytes]:
  images, problems = {}, []
  for name, figure in figures.items():
    try:
      image = figure if isinstance(figure, bytes) else _read_bytes(figure)
    except OSError as error:
      problems.append(f"figure {name}: {error.strerror or error}: {figure!r}")
      continue
    if name not in FIGURES:
      problems.append(f"figure {name}: unknown; known are {list(FIGURES)}")
    if not image.startswith(_PNG_SIGNATURE):
      problems.append(f"figure {name}: not a PNG")
    images[name] = image
  check(problems)
  return images


def _read_bytes(path: epath.PathLike) -> bytes:
  return epath.Path(path).read_bytes()


def _picture(name: str, image: bytes) -> _Picture:
  heading, alt, caption = FIGURES[name]
  return _Picture(
    file=f"{name}.png",
    uri="data:image/png;base64," + base64.b64encode(image).decode("ascii"),
    alt=alt,
    caption=caption,
    heading=heading,
  )


def _trial_cells(trial: Trial) -> tuple[str, ...]:
  """Number, who asked, weights; loss and error, or why there is none."""
  asked = (
    f"{trial.number}",
    trial.asked_by,
    table.format_weights(trial.weights),
  )
  if not trial.failure:
    return (*asked, f"{trial.loss:.5f}", f"{trial.stderr:.5f}")
  if math.isfinite(trial.loss):
    return (*asked, f"{trial.failure} at {trial.loss:.5f}")
  return (*asked, trial.failure)


def _chosen(merged: Row, trials: Sequence[Trial]) -> str:
  """Number of the trial whose weights the row has."""
  for trial in [trial for trial in trials if not trial.failure]:
    steps = trial.weights.keys() | merged.weights.keys()
    if all(
      abs(trial.weights.get(step, 0.0) - merged.weights.get(step, 0.0)) < 1e-6
      for step in steps
    ):
      return f"{trial.number}"
  raise InputError(
    f"no trial has the weights of the row {merged.name}:"
    f" {table.format_weights(merged.weights)}"
  )


def _fact(value: object) -> str:
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return f"{value:,.6g}"
  return str(value)
