"""report.html: one page that needs nothing but itself."""

import base64
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2
from etils import epath

from jaxmerge.errors import InputError, check
from jaxmerge.files import whole_directory
from jaxmerge.reporting import table
from jaxmerge.reporting.headline import headline, runner_up
from jaxmerge.reporting.results import Results, Row, Trial, write_results

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Each figure's section heading, alternative text and caption.
_FIGURES = {
  "baselines": (
    "",
    "Chart of each row's report loss minus that of the last checkpoint, with"
    " bars of two standard errors; the table above has the numbers.",
    "Difference in report loss to the last checkpoint, with two paired"
    " standard errors. Left of the line is better; an arrow stands for a value"
    " off the scale.",
  ),
  "training_curve": (
    "Training curve",
    "Training loss and the checkpoints' held-out loss against training tokens,"
    " with the merged model as a star.",
    "Above, the whole run; below, the neighbourhood of the merge. The merged"
    " model stands at the tokens of its last checkpoint, and an arrow, if"
    " any, leads to where the run itself reaches its loss. Training loss is of"
    " training text, so it may lie on either side of the held-out loss.",
  ),
  "posterior": (
    "What the search believes",
    "Posterior mean and 95% band of the search loss against the weight of the"
    " later checkpoint, with every trial, its number, and the acquisition that"
    " asked for it; the list of trials below has the numbers.",
    "The Gaussian process after the last trial, with each trial's loss (bars:"
    " two paired standard errors) and number; the shape of a marker says which"
    " acquisition asked.",
  ),
  "ternary": (
    "What the search believes",
    "Two triangles of weights of the three checkpoints: contours of the"
    " expected search loss, with every trial and the acquisition that asked"
    " for it, and contours of the standard deviation; the list of trials below"
    " has the numbers.",
    "The Gaussian process after the last trial. A corner is one checkpoint"
    " alone at its largest weight, the opposite edge is without it. Left, the"
    " darker the lower the expected loss; right, the darker the less the"
    " search knows. White, or the darkest grey, may stand for values off the"
    " scale.",
  ),
  "slices": (
    "One weight at a time",
    "Posterior mean and 95% band of the search loss against the weight of one"
    " checkpoint, one chart each, with the chosen weight marked.",
    "The Gaussian process along the line from the chosen weights towards each"
    " checkpoint: its weight changes, the others keep their proportions. A"
    " narrow band is knowledge, a wide one a guess; a lowest point far from"
    " the ring, in a wide band, is a reason for more trials. Of more than"
    " eight checkpoints the heaviest eight are shown.",
  ),
  "convergence": (
    "Progress of the search",
    "Lowest search loss so far against evaluations, with the baselines as"
    " horizontal lines.",
    "Lowest search loss after each evaluation. Dashed lines: the baselines on"
    " the same split. At the top, without a place on the axis: carets are"
    " trials above it, crosses failed ones, rings those stopped early.",
  ),
  "hedge": (
    "Who asked",
    "Stacked probabilities of the acquisitions at each trial, with a marker on"
    " the one that was followed.",
    "GP-Hedge keeps a portfolio of acquisitions and follows one at a time,"
    " drawn with these probabilities; they grow for those whose nominees turn"
    " out to be good. The marker says which was followed; above the bars, a"
    " point that none had nominated, because theirs were asked before.",
  ),
  "calibration": (
    "How well it predicted",
    "Predicted against measured search loss of each trial, and the difference"
    " in standard deviations by trial number, with a band of two.",
    "What the Gaussian process predicted for each trial before it was scored."
    " Left, a perfect prediction lies on the line; right, about 19 of 20"
    " should lie in the band. Many outside: the process is too sure of"
    " itself; all near zero: it is too timid.",
  ),
}


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
  """Writes report.html, its PNG figures and results.json, all or nothing.

  The same arguments give the same bytes.

  Args:
    directory: replaced as a whole; it must not exist, be empty, or hold an
      earlier report.
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
      something else or cannot be written.
  """
  directory = epath.Path(directory)
  images = _read_figures(figures)
  page = _render(title, results, images, facts, commands, trials)
  with whole_directory(directory) as folder:
    # In here, a directory that cannot even be listed is reported like one
    # that cannot be written.
    check(_directory_problems(directory))
    write_results(folder / "results.json", results)
    for name, image in images.items():
      (folder / f"{name}.png").write_bytes(image)
    (folder / "report.html").write_bytes(page.encode())
  return directory / "report.html"


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


def _directory_problems(directory: epath.Path) -> list[str]:
  """A report replaces its directory, so nothing else may lie there."""
  if not directory.exists():
    return []
  if not directory.is_dir():
    return [f"{directory} is a file, not a directory for a report"]
  if any(directory.iterdir()) and not (directory / "report.html").exists():
    return [f"{directory} holds something other than an earlier report"]
  return []


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
    if name not in _FIGURES:
      problems.append(f"figure {name}: unknown; known are {list(_FIGURES)}")
    if not image.startswith(_PNG_SIGNATURE):
      problems.append(f"figure {name}: not a PNG")
    images[name] = image
  check(problems)
  return images


def _read_bytes(path: epath.PathLike) -> bytes:
  return epath.Path(path).read_bytes()


def _picture(name: str, image: bytes) -> _Picture:
  heading, alt, caption = _FIGURES[name]
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
