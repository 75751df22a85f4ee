"""Figures of the Gaussian process's belief about the weights of a merge.

K checkpoints, M points of a posterior, N trials.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.tri import Triangulation

from jaxmerge.evaluation.score import Direction, as_loss
from jaxmerge.reporting import style
from jaxmerge.reporting.results import Results, Trial
from jaxmerge.simplex.bounds import Bounds

# More numbers than these do not fit beside each other, or hide the markers.
_MOST_NUMBERS, _MOST_IN_TRIANGLE = 30, 16
_MOST_SLICES = 8
# Corners of the drawn triangle: oldest checkpoint left, last one on top.
_CORNERS_3x2 = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
# Light, so that the trials' colours stand out; the low losses are the darkest.
_LOSSES = LinearSegmentedColormap.from_list(
  "losses", ["#86B9DB", "#CFE3F1", "#F7FAFC"]
)
_DOUBT = LinearSegmentedColormap.from_list("doubt", ["#FBFBFB", "#B4B4B4"])
_NUM_LEVELS = 9
_LESS: Direction = "minimize"


class Posterior(NamedTuple):
  """The search loss that the process expects at some weights, and its error."""

  weights_MxK: np.ndarray
  mean_M: np.ndarray
  std_M: np.ndarray


def pair(posterior: Posterior, results: Results, bounds: Bounds) -> bytes:
  """Posterior of a pair against the later weight, which increases."""
  trials = results.scored
  earlier, later = results.steps
  # A one-hot weight may leave out the checkpoint that it gives nothing.
  asked_N = np.array([trial.weights.get(later, 0.0) for trial in trials])
  loss_N, stderr_N = np.array([(t.loss, t.stderr) for t in trials]).T
  with style.figure(7.2, 4.6) as figure:
    axes = figure.subplots()
    _, mean_M, std_M = posterior
    style.band(axes, posterior.weights_MxK[:, 1], mean_M, std_M)
    axes.errorbar(
      asked_N, loss_N, 2 * stderr_N, fmt="none", ecolor=style.GREY, elinewidth=1
    )
    style.plot_trials(axes, results, trials, asked_N, loss_N)
    x = results.chosen_weights[-1]
    style.ring(axes, x, results.chosen.loss, results.best)
    if bounds.negative:  # far from all trials it may be of another scale
      x_M = posterior.weights_MxK[:, 1]
      mean_M = mean_M[(x_M >= asked_N.min()) & (x_M <= asked_N.max())]
    told = [mean_M, loss_N - 2 * stderr_N, loss_N + 2 * stderr_N]
    low, high = _limits(posterior, np.concatenate(told))
    # The lowest part of the axes belongs to the trials' numbers.
    strip = low - 0.16 * (high - low)
    axes.set_ylim(strip - 0.04 * (high - low), high)
    lowest = bounds.region(2)[0][-1]
    ends = sorted({lowest, max(lowest, 0.0), 1.0, bounds.highest})
    axes.set_xlim(*style.padded(np.array(ends), 0.03))
    for end in ends:
      axes.axvline(end, color=style.GREY, lw=0.8, ls=":")
    best_N = results.as_loss(loss_N)
    kept_N = np.ones(len(trials), bool)
    if len(trials) > _MOST_NUMBERS:
      kept_N = best_N <= np.minimum.accumulate(best_N)
    kept = list(itertools.compress(trials, kept_N))
    _number_below(axes, asked_N[kept_N], loss_N[kept_N], kept, strip)
    other = rf"(step {earlier} has $1 - \lambda$)"
    axes.set_xlabel(rf"$\lambda$, weight of step {later} {other}")
    axes.set_ylabel(f"search {results.noun} ({results.unit})")
    style.legend_above(figure)
    return style.png(figure)


def _limits(posterior: Posterior, told: np.ndarray) -> tuple[float, float]:
  """Shows all that is told; a very wide band may leave the axes."""
  _, mean_M, std_M = posterior
  low, high = style.padded(told, 0.06)
  most = 0.35 * (high - low)
  return (
    max(low - most, min(low, float(np.min(mean_M - 1.96 * std_M)))),
    min(high + most, max(high, float(np.max(mean_M + 1.96 * std_M)))),
  )


def _number_below(
  axes: Axes,
  x_N: np.ndarray,
  loss_N: np.ndarray,
  trials: Sequence[Trial],
  strip: float,
) -> None:
  """Trial numbers in a strip at the bottom, each tied to its marker."""
  low, high = axes.get_xlim()
  gap = 0.03 * (high - low)
  at = style.spread(x_N, gap, low + gap / 2, high - gap / 2)
  box = {"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none"}
  line = {"color": "#B5B5B5", "lw": 0.6, "shrinkA": 0}
  for trial, x, y, x_text in zip(trials, x_N, loss_N, at):
    style.tie(axes, trial.number, (x, y), (x_text, strip), line, bbox=box)


def slices(posteriors: Sequence[Posterior], results: Results) -> bytes:
  """Posterior against one checkpoint's weight at a time, small multiples.

  Args:
    posteriors: for each checkpoint along a line of its increasing weights; of
      more than 8 those that weigh most in the chosen trial are shown.
    results: of the search.
  """
  steps, chosen, weight = results.steps, results.chosen, results.chosen_weights
  heaviest = sorted(range(len(steps)), key=lambda k: -weight[k])
  kept = sorted(heaviest[:_MOST_SLICES])
  columns = min(len(kept), 4)
  rows = -(-len(kept) // columns)
  # The posterior far from the chosen weights may be of another scale.
  mean_A = results.as_loss(np.concatenate([posteriors[k].mean_M for k in kept]))
  std_A = np.concatenate([posteriors[k].std_M for k in kept])
  low, high = _shown(mean_A)
  low = min(low, results.as_loss(chosen.loss), np.min(mean_A - 2 * std_A))
  limits = np.array([results.as_loss(low), results.as_loss(high)])
  with style.figure(7.2, 0.9 + 2.0 * rows) as figure:
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, k in zip(panels.flat, kept):
      weights_MxK, mean_M, std_M = posteriors[k]
      style.band(axes, weights_MxK[:, k], mean_M, std_M)
      axes.axvline(weight[k], color=style.VERMILION, lw=0.9, ls=":")
      style.ring(axes, weight[k], chosen.loss, results.best)
      axes.set_title(f"step {steps[k]}")
      axes.set_xlim(*style.padded(weights_MxK[:, k], 0.04))
      axes.set_ylim(*style.padded(limits, 0.06))
    for axes in panels.flat[len(kept) :]:
      axes.set_axis_off()
    figure.supxlabel("weight of the checkpoint", fontsize=9.5)
    figure.supylabel(f"search {results.noun} ({results.unit})", fontsize=9.5)
    style.legend_above(figure)
    return style.png(figure)


def _shown(values: np.ndarray) -> tuple[float, float]:
  """From the lowest value to the highest that does not flatten the rest."""
  low, middle = float(np.min(values)), float(np.median(values))
  high = min(float(np.max(values)), low + 3 * (middle - low))
  return low, max(high, low + 1e-9 * max(abs(low), 1.0))


def ternary(posterior: Posterior, results: Results, bounds: Bounds) -> bytes:
  """Mean and standard deviation over three checkpoints, with every trial.

  The posterior's weights cover the triangle of the bounds, or, of negative
  weights, that of those above the posterior's lowest.
  """
  trials, steps = results.scored, results.steps
  asked = [[t.weights.get(step, 0.0) for step in steps] for t in trials]
  lowest_3 = np.array(bounds.region(3)[0])
  if bounds.negative:
    lowest_3 = posterior.weights_MxK.min(axis=0)
  points_Nx2 = _on_paper(asked, lowest_3)
  points_Mx2 = _on_paper(posterior.weights_MxK, lowest_3)
  with style.figure(7.2, 4.6) as figure:
    left, right = figure.subplots(1, 2, width_ratios=(1.8, 1))
    expected = f"Expected search {results.noun}"
    for axes, values_M, colours, title, margin, direction in (
      # Room for the trials' numbers on either side.
      (left, posterior.mean_M, _LOSSES, expected, 0.12, results.direction),
      (right, posterior.std_M, _DOUBT, "Its standard deviation", 0.1, _LESS),
    ):
      _triangle(axes, points_Mx2, values_M, colours, results.unit, direction)
      axes.set_xlim(-margin, 1 + margin)
      axes.text(0.5, 1.05, title, ha="center", fontsize=10)
    style.plot_trials(left, results, trials, *points_Nx2.T)
    [(x, y)] = _on_paper([results.chosen_weights], lowest_3)
    style.ring(left, x, y, results.best)
    right.plot(*points_Nx2.T, ls="", marker=".", ms=3, color=style.BLACK)
    if len(trials) <= _MOST_IN_TRIANGLE:
      _number_beside(left, points_Nx2, trials)
    for axes in (left, right):
      _name_corners(axes, steps, lowest_3)
      if bounds.negative:  # of these all inside are >= 0
        alone_Mx2 = _on_paper(np.eye(3)[[0, 1, 2, 0]], lowest_3)
        axes.plot(*alone_Mx2.T, color=style.GREY, lw=0.8, ls=":")
    style.legend_above(figure)
    return style.png(figure)


def _on_paper(
  weights_Nx3: Sequence[Sequence[float]] | np.ndarray, lowest_3: np.ndarray
) -> np.ndarray:
  """Places weights in the triangle of those above the lowest."""
  unit_Nx3 = (np.asarray(weights_Nx3) - lowest_3) / (1 - lowest_3.sum())
  return unit_Nx3 @ _CORNERS_3x2


def _triangle(
  axes: Axes,
  points_Mx2: np.ndarray,
  values_M: np.ndarray,
  colours: LinearSegmentedColormap,
  unit: str,
  direction: Direction,
) -> None:
  """Contours, the darkest for the best values."""
  is_less = direction == _LESS
  limits = _shown(as_loss(values_M, direction))
  levels = np.sort(as_loss(np.linspace(*limits, _NUM_LEVELS), direction))
  triangles = Triangulation(points_Mx2[:, 0], points_Mx2[:, 1])
  filled = axes.tricontourf(
    triangles,
    values_M,
    levels,
    cmap=colours if is_less else colours.reversed(),
    extend="max" if is_less else "min",
  )
  axes.tricontour(triangles, values_M, levels, colors="white", linewidths=0.6)
  bar = axes.figure.colorbar(
    filled, ax=axes, location="bottom", shrink=0.8, aspect=28, pad=0.12
  )
  bar.outline.set_visible(False)
  ticks = [float(levels[i]) for i in (0, _NUM_LEVELS // 2, -1)]
  bar.set_ticks(ticks, labels=[f"{value:.4f}" for value in ticks])
  bar.set_label(unit)
  axes.plot(*_CORNERS_3x2[[0, 1, 2, 0]].T, color=style.GREY, lw=1)
  axes.set_aspect("equal")
  axes.set_ylim(-0.03, 1.1)
  axes.set_axis_off()


def _number_beside(
  axes: Axes, points_Nx2: np.ndarray, trials: Sequence[Trial]
) -> None:
  """Trial numbers in a column on either side, each tied to its marker."""
  numbers_N = np.array([trial.number for trial in trials])
  left_N = points_Nx2[:, 0] < np.median(points_Nx2[:, 0])
  line = {"color": style.GREY, "lw": 0.5, "shrinkA": 1}
  for side_N, x_text in ((left_N, -0.06), (~left_N, 1.06)):
    points = points_Nx2[side_N]
    at = style.spread(points[:, 1], 0.055, 0.0, _CORNERS_3x2[2, 1])
    for number, point, y in zip(numbers_N[side_N], points, at):
      style.tie(axes, number, point, (x_text, y), line)


def _name_corners(
  axes: Axes, steps: Sequence[int], lowest_3: np.ndarray
) -> None:
  for step, corner, offset, place in zip(
    steps, _CORNERS_3x2, (-9, -9, 9), ("top", "top", "bottom")
  ):
    vertex_K = [float(step == other) for other in steps]
    at_corner = lowest_3 + (1 - lowest_3.sum()) * np.array(vertex_K)
    weights_K = np.round(at_corner, 12).tolist()
    name = f"step {step}"
    if weights_K != vertex_K:
      # Beside the upper corner is room for one line only, and for its length.
      separator = ", " if step == steps[-1] else ",\n"
      name = separator.join(
        f"{w:.3g} of {s}" for s, w in zip(steps, weights_K) if w
      )
    style.write(axes, name, tuple(corner), (0, offset), ha="center", va=place)
