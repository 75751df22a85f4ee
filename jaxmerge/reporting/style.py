"""One look for every figure and each trial in it, and PNGs of the data alone.

M: points of a posterior; N: trials, or labels along an axis.
"""

import contextlib
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from jaxmerge.reporting.results import Results, Trial

# Okabe and Ito's palette, told apart by colour-blind readers
# (https://jfly.uni-koeln.de/color/).
BLACK = "#000000"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
BLUE = "#0072B2"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#767676"

_LOOK = {
  "font.family": "DejaVu Sans",
  "font.size": 9.5,
  "axes.titlesize": 10,
  "axes.titlelocation": "left",
  "axes.labelsize": 9.5,
  "axes.formatter.useoffset": False,
  "axes.formatter.limits": (-4, 9),
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": GREY,
  "axes.axisbelow": True,
  "axes.grid": True,
  "grid.color": "#E3E3E3",
  "grid.linewidth": 0.7,
  "xtick.color": GREY,
  "xtick.labelcolor": BLACK,
  "ytick.color": GREY,
  "ytick.labelcolor": BLACK,
  "legend.frameon": False,
  "legend.fontsize": 8.5,
  "figure.facecolor": "white",
  "savefig.dpi": 160,
}
# More labels than this do not fit beside each other.
_MOST_LABELS = 8


class Mark(NamedTuple):
  """Marker, colour and name in the legend of who asked a trial."""

  marker: str
  colour: str
  name: str


_MARKS = {
  "start": Mark("s", BLACK, "start"),
  "ei": Mark("o", BLUE, "EI"),
  "pi": Mark("^", ORANGE, "PI"),
  "ucb": Mark("D", GREEN, "UCB"),
  "thompson": Mark("P", SKY, "Thompson"),
  "explore": Mark("v", PURPLE, "explore"),
}
# For acquisitions that are not among these, by their names' order.
_MORE_MARKS = (("X", VERMILION), ("p", "#6A3D9A"), ("h", GREY), ("d", BLUE))


def marks(trials: Sequence[Trial]) -> dict[str, Mark]:
  """Gives each asker that trials name its look, in the legend's order."""
  named = {t.asked_by for t in trials}.union(*(t.odds for t in trials))
  more = zip(sorted(named - _MARKS.keys()), itertools.cycle(_MORE_MARKS))
  known = {name: mark for name, mark in _MARKS.items() if name in named}
  return known | {name: Mark(*look, name) for name, look in more}


@contextlib.contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
  """Yields a figure (sizes in inches) to draw and to write within the block.

  The reader's own matplotlibrc has no say.
  """
  with matplotlib.style.context(["default", _LOOK]):
    yield Figure(figsize=(width, height), layout="constrained")


def png(drawing: Figure) -> bytes:
  """The figure without a date or a version: the same data, the same bytes."""
  buffer = io.BytesIO()
  drawing.savefig(buffer, format="png", metadata={"Software": None})
  return buffer.getvalue()


def dots(
  axes: Axes, x: Any, y: Any, marker: Any, colour: str, **look: Any
) -> None:
  """Markers without a line."""
  axes.plot(x, y, ls="", marker=marker, color=colour, **look)


def plot_trials(
  axes: Axes,
  results: Results,
  trials: Sequence[Trial],
  x_N: np.ndarray,
  y_N: np.ndarray,
) -> None:
  """One marker for each of these trials, its shape and colour by who asked."""
  for asked_by, (marker, colour, name) in marks(results.trials).items():
    chosen_N = np.array([trial.asked_by == asked_by for trial in trials], bool)
    if chosen_N.any():
      x, y, size = x_N[chosen_N], y_N[chosen_N], 5.8 if marker != "P" else 7
      look = {"mec": "white", "mew": 0.6, "zorder": 4}
      dots(axes, x, y, marker, colour, ms=size, label=name, **look)


def ring(axes: Axes, x: float, y: float, best: int | None) -> None:
  """Marks the chosen trial, or a chosen point that was no trial."""
  label = "chosen" if best is None else f"chosen (trial {best})"
  look = {"mfc": "none", "mew": 1.6, "ms": 12, "zorder": 5}
  dots(axes, x, y, "o", VERMILION, label=label, **look)


def band(
  axes: Axes, x_M: np.ndarray, mean_M: np.ndarray, std_M: np.ndarray
) -> None:
  """Posterior mean and its 95% band."""
  low_M, high_M = mean_M - 1.96 * std_M, mean_M + 1.96 * std_M
  axes.fill_between(
    x_M, low_M, high_M, color=SKY, alpha=0.3, lw=0, label="95% band"
  )
  axes.plot(x_M, mean_M, color=BLUE, lw=1.6, label="mean")


def whole_numbers(axes: Axes) -> None:
  """Ticks of the horizontal axis at whole numbers, one at least."""
  axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def spread(
  wanted_N: np.ndarray, gap: float, low: float, high: float
) -> np.ndarray:
  """Label positions at least `gap` apart, as near as can be to those wanted.

  Least squares under y[i+1] - y[i] >= gap is isotonic regression of
  wanted[i] - i * gap.

  The gap is made smaller where N labels do not fit from low to high otherwise.
  """
  count = len(wanted_N)
  if not count:
    return wanted_N
  gap = min(gap, (high - low) / max(count - 1, 1))
  order_N = np.argsort(wanted_N, kind="stable")
  offset_N = gap * np.arange(count)
  fitted_N = isotonic_regression(wanted_N[order_N] - offset_N).x
  placed_N = np.empty(count)
  placed_N[order_N] = np.clip(fitted_N, low, high - offset_N[-1]) + offset_N
  return placed_N


def padded(values: np.ndarray, share: float) -> tuple[float, float]:
  """Limits around the values with `share` of their range on either side."""
  low, high = float(np.min(values)), float(np.max(values))
  margin = share * (high - low) or max(abs(high), 1.0) * 0.01
  return low - margin, high + margin


def tie(
  axes: Axes, number: int, point: Any, place: Any, line: Any, **look: Any
) -> None:
  """Writes a trial's number at a place, with a line to the trial's point."""
  axes.annotate(
    f"{number}",
    point,
    place,
    ha="center",
    va="center",
    fontsize=8,
    arrowprops={"arrowstyle": "-", "shrinkB": 4, **line},
    **look,
  )


def write(axes: Axes, text: str, point: Any, offset: Any, **look: Any) -> None:
  """Writes beside a point, so many printer's points away from it."""
  axes.annotate(
    text, point, offset, textcoords="offset points", fontsize=8.5, **look
  )


def label_right(axes: Axes, labels: Mapping[str, float]) -> None:
  """Names horizontal lines at the right edge without overlapping."""
  low, high = axes.get_ylim()
  placed_N = spread(
    np.array(list(labels.values())), (high - low) * 0.06, low, high
  )
  line = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkB": 0}
  edge = "axes fraction", "data"
  look: Any = {"va": "center", "fontsize": 8.5, "arrowprops": line}
  for (name, y), x_y in zip(labels.items(), ((1.03, y) for y in placed_N)):
    axes.annotate(name, (1, y), x_y, edge, edge, **look)


def legend_above(drawing: Figure) -> None:
  """Everything that has a label above the axes, in one row or two."""
  handles = {
    label: handle
    for axes in drawing.axes
    for handle, label in zip(*axes.get_legend_handles_labels())
  }
  rows = 1 if len(handles) <= _MOST_LABELS else 2
  drawing.legend(
    list(handles.values()),
    list(handles),
    loc="outside upper center",
    ncols=-(-len(handles) // rows),
    columnspacing=1.2,
    handlelength=1.4,
    handletextpad=0.5,
  )
