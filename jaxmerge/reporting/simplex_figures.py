"""Figures of a search over three checkpoints or more.

Losses are in nats per token. K checkpoints, M points of a posterior, N trials,
S slices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.tri import Triangulation

from jaxmerge.bayesopt.reach import Reach, unit_from_weights, weights_from_unit
from jaxmerge.errors import InputError, check
from jaxmerge.reporting import style, trial_marks
from jaxmerge.reporting.results import Trial

# Corners of the drawn triangle: oldest checkpoint left, last one on top.
_CORNERS_3x2 = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
# Light, so that the trials' colours stand out; the low losses are the darkest.
_LOSSES = LinearSegmentedColormap.from_list(
  "losses", ["#86B9DB", "#CFE3F1", "#F7FAFC"]
)
_DOUBT = LinearSegmentedColormap.from_list("doubt", ["#FBFBFB", "#B4B4B4"])
_NUM_LEVELS = 9
_MOST_SLICES = 8
# More leader lines than this hide the markers.
_MOST_NUMBERS = 16


class Slice(NamedTuple):
  """The belief along the line from the chosen weights to one checkpoint.

  Attributes:
    step: of the checkpoint whose weight changes.
    weight_M: its weight, increasing.
    mean_M: posterior mean of the search loss.
    std_M: its posterior standard deviation.
    chosen: the checkpoint's weight in the chosen trial.
  """

  step: int
  weight_M: np.ndarray
  mean_M: np.ndarray
  std_M: np.ndarray
  chosen: float


def ternary(
  path: epath.PathLike,
  weights_Mx3: np.ndarray,
  mean_M: np.ndarray,
  std_M: np.ndarray,
  trials: Sequence[Trial],
  reach: Reach,
  best: int,
) -> None:
  """What the Gaussian process believes about three checkpoints.

  Args:
    path: where the PNG goes.
    weights_Mx3: weights that cover the triangle searched, oldest first.
    mean_M: posterior mean of the search loss at them.
    std_M: its posterior standard deviation.
    trials: each weighs the same three checkpoints; those without a loss are
      left out.
    reach: of the last weight.
    best: number of the trial that was chosen.

  Raises:
    InputError: the trials are not of three checkpoints, one was asked by
      nobody known, none has the number `best`, or the path cannot be written.
  """
  trial_marks.check_trials(trials)
  trials = trial_marks.scored(trials)
  steps = sorted({step for trial in trials for step in trial.weights})
  numbers = [trial.number for trial in trials]
  if len(steps) != 3 or best not in numbers:
    raise InputError(
      f"a triangle needs three steps, not {steps}, and the chosen trial"
      f" ({best}) among the trials"
    )
  asked_Nx3 = np.array(
    [[t.weights.get(step, 0.0) for step in steps] for t in trials]
  )
  points_Nx2 = _on_paper(asked_Nx3, reach)
  points_Mx2 = _on_paper(weights_Mx3, reach)
  with style.figure(path, 7.2, 4.6) as figure:
    panels = figure.subplots(1, 2, width_ratios=(1.8, 1))
    for axes, values_M, colours, title, margin in (
      # Room for the trials' numbers on either side.
      (panels[0], mean_M, _LOSSES, "Expected search loss", 0.12),
      (panels[1], std_M, _DOUBT, "Its standard deviation", 0.1),
    ):
      _triangle(axes, points_Mx2, values_M, colours)
      axes.set_xlim(-margin, 1 + margin)
      axes.text(0.5, 1.05, title, ha="center", fontsize=10)
    trial_marks.plot_trials(
      panels[0], points_Nx2[:, 0], trials, points_Nx2[:, 1]
    )
    index = numbers.index(best)
    x, y = points_Nx2[index]
    trial_marks.ring(panels[0], x, y, f"chosen (trial {best})")
    panels[1].plot(*points_Nx2.T, ls="", marker=".", ms=3, color=style.BLACK)
    _number(panels[0], points_Nx2, numbers)
    for axes in panels:
      _name_corners(axes, steps, reach)
    style.legend_above(figure)


def _on_paper(weights_Nx3: np.ndarray, reach: Reach) -> np.ndarray:
  """Places weights in the triangle that the search may reach."""
  unit = [unit_from_weights(w, reach) for w in weights_Nx3.tolist()]
  return np.array(unit) @ _CORNERS_3x2


def _triangle(
  axes: Axes,
  points_Mx2: np.ndarray,
  values_M: np.ndarray,
  colours: LinearSegmentedColormap,
) -> None:
  levels = np.linspace(*_shown(values_M), _NUM_LEVELS)
  triangles = Triangulation(points_Mx2[:, 0], points_Mx2[:, 1])
  filled = axes.tricontourf(
    triangles, values_M, levels, cmap=colours, extend="max"
  )
  axes.tricontour(triangles, values_M, levels, colors="white", linewidths=0.6)
  bar = axes.figure.colorbar(
    filled, ax=axes, location="bottom", shrink=0.8, aspect=28, pad=0.12
  )
  bar.outline.set_visible(False)
  ticks = [float(levels[i]) for i in (0, _NUM_LEVELS // 2, -1)]
  bar.set_ticks(ticks, labels=[f"{value:.4f}" for value in ticks])
  bar.set_label("nats/token")
  axes.plot(*_CORNERS_3x2[[0, 1, 2, 0]].T, color=style.GREY, lw=1)
  axes.set_aspect("equal")
  axes.set_ylim(-0.03, 1.1)
  axes.set_axis_off()


def _shown(values: np.ndarray) -> tuple[float, float]:
  """From the lowest value to the highest that does not flatten the rest."""
  low, middle = float(np.min(values)), float(np.median(values))
  high = min(float(np.max(values)), low + 3 * (middle - low))
  return low, max(high, low + 1e-9 * max(abs(low), 1.0))


def _number(axes: Axes, points_Nx2: np.ndarray, numbers: Sequence[int]) -> None:
  """Trial numbers in a column on either side, each tied to its marker."""
  if len(numbers) > _MOST_NUMBERS:
    return
  left_N = points_Nx2[:, 0] < np.median(points_Nx2[:, 0])
  for side_N, x_text in ((left_N, -0.06), (~left_N, 1.06)):
    at = style.spread(points_Nx2[side_N, 1], 0.055, 0.0, _CORNERS_3x2[2, 1])
    for number, point, y_text in zip(
      np.array(numbers)[side_N], points_Nx2[side_N], at
    ):
      axes.annotate(
        f"{number}",
        tuple(point),
        (x_text, y_text),
        ha="center",
        va="center",
        fontsize=8,
        arrowprops={
          "arrowstyle": "-",
          "color": style.GREY,
          "lw": 0.5,
          "shrinkA": 1,
          "shrinkB": 4,
        },
      )


def _name_corners(axes: Axes, steps: Sequence[int], reach: Reach) -> None:
  for step, corner, offset, place in zip(
    steps, _CORNERS_3x2, (-9, -9, 9), ("top", "top", "bottom")
  ):
    vertex_K = [float(step == other) for other in steps]
    weights_K = weights_from_unit(vertex_K, reach)
    name = f"step {step}"
    if weights_K != vertex_K:
      # Beside the upper corner is room for one line only, and for its length.
      separator = ", " if step == steps[-1] else ",\n"
      name = separator.join(
        f"{w:.3g} of {s}" for s, w in zip(steps, weights_K) if w
      )
    axes.annotate(
      name,
      tuple(corner),
      (0, offset),
      textcoords="offset points",
      ha="center",
      va=place,
      fontsize=8.5,
    )


def slices(
  path: epath.PathLike, lines: Sequence[Slice], loss: float, best: int
) -> None:
  """The belief about one checkpoint's weight at a time, small multiples.

  Args:
    path: where the PNG goes.
    lines: one a checkpoint, by step; of more than 8 those that weigh most in
      the chosen trial are shown.
    loss: search loss of the chosen trial.
    best: its number.

  Raises:
    InputError: there is no line, or the path cannot be written.
  """
  check([] if lines else ["no slice to draw"])
  heaviest = sorted(lines, key=lambda line: -line.chosen)[:_MOST_SLICES]
  kept = sorted(heaviest, key=lambda line: line.step)
  columns = min(len(kept), 4)
  rows = -(-len(kept) // columns)
  # The belief far from the chosen weights may be of another scale.
  low, high = _shown(np.concatenate([line.mean_M for line in kept]))
  low = min(low, loss, *(np.min(line.mean_M - 2 * line.std_M) for line in kept))
  with style.figure(path, 7.2, 0.9 + 2.0 * rows) as figure:
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, line in zip(panels.flat, kept):
      trial_marks.belief(axes, line.weight_M, line.mean_M, line.std_M)
      axes.axvline(line.chosen, color=style.VERMILION, lw=0.9, ls=":")
      trial_marks.ring(axes, line.chosen, loss, f"chosen (trial {best})")
      axes.set_title(f"step {line.step}")
      axes.set_xlim(*style.padded(line.weight_M, 0.04))
      axes.set_ylim(*style.padded(np.array([low, high]), 0.06))
    for axes in panels.flat[len(kept) :]:
      axes.set_axis_off()
    figure.supxlabel("weight of the checkpoint", fontsize=9.5)
    figure.supylabel("search loss (nats/token)", fontsize=9.5)
    style.legend_above(figure)
