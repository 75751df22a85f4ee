"""Figures of the run and of its rows. N: points of a curve, or rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxmerge.reporting import style
from jaxmerge.reporting.results import Point, Results

# More step names than this do not fit beside each other.
_MOST_NAMES = 10
# More merged steps than these fill the legend.
_MOST_MERGED = 6
_UNITS = (
  (10**12, " (trillions)"),
  (10**9, " (billions)"),
  (10**6, " (millions)"),
  (10**3, " (thousands)"),
  (1, ""),
)


def training_curve(
  training: Sequence[Point], checkpoints: Sequence[Point], results: Results
) -> bytes:
  """The whole run above, and the neighbourhood of the merge below.

  Args:
    training: training loss as logged, in the order of training.
    checkpoints: report loss of the run's checkpoints, in that order.
    results: of the search. Tokens saved are an arrow from the merged model to
      the run's own curve.
  """
  _, train_tokens_N, train_loss_N = np.array(training, np.float64).T
  _, check_tokens_N, check_loss_N = np.array(checkpoints, np.float64).T
  most = max(train_tokens_N[-1], check_tokens_N[-1])
  unit, name = next((u, name) for u, name in _UNITS if most >= u or u == 1)
  merged = results.merged.report_loss
  smooth_N = smooth(train_loss_N)
  train_N = train_tokens_N / unit
  dot: Any = {"marker": "o", "ms": 5.5, "mec": "white", "mew": 0.6, "lw": 1.3}
  star: Any = {"ms": 13, "mec": "white", "mew": 0.8, "zorder": 5}
  star["label"] = "merged " + " + ".join(map(str, results.steps))
  if len(results.steps) > _MOST_MERGED:
    star["label"] = f"merge of {len(results.steps)} checkpoints"
  with style.figure(7.2, 6.4) as figure:
    whole, near = figure.subplots(2, 1, height_ratios=(1, 1.05))
    whole.plot(train_N, train_loss_N, color=style.SKY, lw=0.7, alpha=0.45)
    label = "training loss, running mean"
    whole.plot(train_N, smooth_N, color=style.BLUE, lw=1.6, label=label)
    for axes in (whole, near):
      label, x_N = "checkpoint, held-out loss", check_tokens_N / unit
      axes.plot(x_N, check_loss_N, color=style.ORANGE, label=label, **dot)
      x = results.tokens_trained / unit
      style.dots(axes, x, merged, "*", style.VERMILION, **star)
      axes.set_ylabel(f"loss ({results.unit})")
    # The first twentieth is the fall from the initial loss.
    settled = train_tokens_N[-1] / 20
    shown = [
      *smooth_N[train_tokens_N >= settled],
      *check_loss_N[check_tokens_N >= settled],
      merged,
    ]
    whole.set_ylim(*style.padded(np.array(shown), 0.08))
    whole.set_title("The whole run")
    whole.legend(loc="upper right")
    _zoom(near, checkpoints, results, unit)
    near.set_xlabel(f"training tokens{name}")
    return style.png(figure)


def smooth(values_N: np.ndarray) -> np.ndarray:
  """Centred running mean over a fiftieth of the points, fewer at the ends."""
  half = len(values_N) // 100
  sums = np.concatenate([[0.0], np.cumsum(values_N)])
  centre_N = np.arange(len(values_N))
  reach_N = np.minimum(half, np.minimum(centre_N, centre_N[::-1]))
  low_N, high_N = centre_N - reach_N, centre_N + reach_N + 1
  return (sums[high_N] - sums[low_N]) / (high_N - low_N)


def _zoom(
  axes: Axes, checkpoints: Sequence[Point], results: Results, unit: int
) -> None:
  """Limits, step names and the arrow of the lower panel."""
  start, saved = results.tokens_trained, results.tokens_saved
  merged = results.merged.report_loss
  end = start + (saved or 0)
  before = [p for p in checkpoints if p.tokens <= start][-2:]
  after = [p for p in checkpoints if p.tokens > start]
  # With the crossing known, one checkpoint beyond it closes the picture.
  inside = [p for p in after if p.tokens < end]
  near = before + (after[: len(inside) + 2] if saved else after)
  shown = [*near, Point(0, start, merged)]
  _, tokens_N, loss_N = np.array(shown, np.float64).T
  axes.set_xlim(*style.padded(tokens_N / unit, 0.12))
  axes.set_ylim(*style.padded(loss_N, 0.16))
  axes.set_title("Around the merge")
  for point in near if len(near) <= _MOST_NAMES else before:
    at = point.tokens / unit, point.loss
    style.write(axes, f"step {point.step}", at, (5, 5))
  if saved:
    arrow = {"arrowstyle": "<->", "lw": 1.4, "shrinkA": 8, "shrinkB": 0}
    axes.annotate(
      "",
      (end / unit, merged),
      (start / unit, merged),
      arrowprops={"color": style.VERMILION, **arrow},
    )
    text, middle = f"{saved:,} tokens saved", (start + end) / unit / 2
    look = {"ha": "center", "va": "top", "color": style.VERMILION}
    style.write(axes, text, (middle, merged), (0, -6), **look)


def baselines(results: Results) -> bytes:
  """Report loss of each shown row minus that of "last", with 95% intervals.

  Single checkpoints far off the scale of the merges become arrows at the edge;
  every value stands beside its row.
  """
  rows = results.shown
  extent_N = np.array(
    [abs(r.report_delta_vs_last) + r.delta.half_width() for r in rows]
  )
  merge_N = np.array([not row.name.startswith("step_") for row in rows])
  scale = extent_N[merge_N].max() or extent_N.max() or 0.01
  bounds = 1.6 * float(scale)
  with style.figure(7.2, 1.1 + 0.36 * len(rows)) as figure:
    axes = figure.subplots()
    axes.axvline(0, color=style.BLACK, lw=1)
    for y, row in enumerate(rows):
      delta, half = row.report_delta_vs_last, row.delta.half_width()
      colour = style.GREY
      if row.is_significant:
        is_better = results.as_loss(delta) < 0
        colour = style.BLUE if is_better else style.VERMILION
      look: Any = {"color": colour, "fmt": "o", "capsize": 3, "ms": 6}
      if extent_N[y] > bounds:
        marker, x = ">" if delta > 0 else "<", np.sign(delta) * bounds * 0.96
        axes.plot(x, y, marker=marker, color=colour, ms=8)
      else:
        axes.errorbar(delta, y, xerr=half, **look)
      text = f"{delta:+.4f} ± {half:.4f}".replace("-", "\u2212")
      axes.annotate(
        "reference" if row.name == "last" else text,
        (1.02, y),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8.5,
        color=colour if row.is_significant else style.BLACK,
      )
    axes.set_xlim(-bounds, bounds)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.grid(axis="y", visible=False)
    ends = ("better", "worse")[:: 1 if results.better == "lower" else -1]
    axes.set_xlabel(
      f"report {results.noun} minus that of last ({results.unit}),"
      " and its 95% interval\n"
      f"\u2190 {ends[0]}          {ends[1]} \u2192"
    )
    return style.png(figure)
