"""One look for every figure, and PNG files that depend on the data alone.

N: points along a curve or labels along an axis.
"""

import contextlib
import io
from collections.abc import Iterator

import matplotlib.style
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmerge.errors import InputError

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

_DPI = 160
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
  "savefig.dpi": _DPI,
}
# More labels than this do not fit beside each other.
_MOST_LABELS = 8
_UNITS = (
  (10**12, "trillions"),
  (10**9, "billions"),
  (10**6, "millions"),
  (10**3, "thousands"),
)


@contextlib.contextmanager
def figure(
  path: epath.PathLike, width: float, height: float
) -> Iterator[Figure]:
  """Yields a figure (sizes in inches) and writes it to `path` as a PNG.

  The reader's own matplotlibrc has no say, and the file carries no date and no
  version, so that the same data give the same bytes.

  Raises:
    InputError: the file cannot be written.
  """
  with matplotlib.style.context(["default", _LOOK]):
    drawing = Figure(figsize=(width, height), layout="constrained")
    yield drawing
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", metadata={"Software": None})
  try:
    epath.Path(path).write_bytes(buffer.getvalue())
  except OSError as error:
    raise InputError(
      f"cannot write {path}: {error.strerror or error}"
    ) from error


def token_unit(most_tokens: float) -> tuple[int, str]:
  """Divisor and axis label with which token counts read as small numbers."""
  for divisor, name in _UNITS:
    if most_tokens >= divisor:
      return divisor, f"training tokens ({name})"
  return 1, "training tokens"


def smooth(values_N: np.ndarray) -> np.ndarray:
  """Centred running mean over a fiftieth of the points, fewer at the ends."""
  half = len(values_N) // 100
  sums = np.concatenate([[0.0], np.cumsum(values_N)])
  centre_N = np.arange(len(values_N))
  reach_N = np.minimum(half, np.minimum(centre_N, centre_N[::-1]))
  low_N, high_N = centre_N - reach_N, centre_N + reach_N + 1
  return (sums[high_N] - sums[low_N]) / (high_N - low_N)


def spread(
  wanted_N: np.ndarray, gap: float, low: float, high: float
) -> np.ndarray:
  """Label positions at least `gap` apart, as near as can be to those wanted.

  Least squares under y[i+1] - y[i] >= gap is isotonic regression of
  wanted[i] - i * gap, here by its max-min formula (Barlow et al. 1972).

  Args:
    wanted_N: positions wanted, in any order.
    gap: least distance; made smaller where N labels do not fit otherwise.
    low: lowest position allowed.
    high: highest position allowed.
  """
  count = len(wanted_N)
  gap = min(gap, (high - low) / max(count - 1, 1))
  order_N = np.argsort(wanted_N, kind="stable")
  offset_N = gap * np.arange(count)
  shifted_N = wanted_N[order_N] - offset_N
  sums = np.concatenate([[0.0], np.cumsum(shifted_N)])
  fitted_N = [
    max(
      min((sums[k] - sums[j]) / (k - j) for k in range(i + 1, count + 1))
      for j in range(i + 1)
    )
    for i in range(count)
  ]
  clipped_N = np.clip(fitted_N, low, high - gap * (count - 1))
  placed_N = np.empty(count)
  placed_N[order_N] = clipped_N + offset_N
  return placed_N


def padded(values: np.ndarray, share: float) -> tuple[float, float]:
  """Limits around the values with `share` of their range on either side."""
  low, high = float(np.min(values)), float(np.max(values))
  margin = share * (high - low) or max(abs(high), 1.0) * 0.01
  return low - margin, high + margin


def label_right(axes: Axes, labels: dict[str, float], fontsize: float) -> None:
  """Names horizontal lines at the right edge without overlapping."""
  low, high = axes.get_ylim()
  placed_N = spread(
    np.array(list(labels.values())), (high - low) * 0.06, low, high
  )
  for (name, y), y_text in zip(labels.items(), placed_N):
    axes.annotate(
      name,
      xy=(1, y),
      xytext=(1.03, y_text),
      xycoords=("axes fraction", "data"),
      textcoords=("axes fraction", "data"),
      va="center",
      fontsize=fontsize,
      arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkB": 0},
    )


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
