"""Scores over the tokens of training. P: checkpoints of a trajectory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxmerge.evaluation.statistics import ratio
from jaxmerge.evaluation.task_tables import Table
from jaxmerge.evaluation.trajectory import Trajectory
from jaxmerge.reporting import style

_COLOURS = (
  style.BLUE,
  style.VERMILION,
  style.GREEN,
  style.ORANGE,
  style.PURPLE,
  style.SKY,
)
_MOST_COLUMNS = 3
# More panels than these are higher than a picture may be.
_MOST_PANELS = 90


def curves(
  trajectories: Sequence[Trajectory], tables: Sequence[Table]
) -> bytes:
  """A panel for each score of each table, its trajectories with 95% intervals.

  Of very many scores the first ones alone.
  """
  panels = [
    (table, metric) for table in tables for metric in table.scores.metrics
  ]
  panels = panels[:_MOST_PANELS]
  columns = min(len(panels), _MOST_COLUMNS)
  rows = -(-len(panels) // columns)
  with style.figure(1.2 + 4.2 * columns, 0.8 + 2.6 * rows) as figure:
    axes_RxC = figure.subplots(rows, columns, squeeze=False)
    for axes in axes_RxC.flat[len(panels) :]:
      axes.set_visible(False)
    for axes, (table, metric) in zip(axes_RxC.flat, panels):
      _panel(axes, trajectories, table, metric)
    style.legend_above(figure)
    return style.png(figure)


def _panel(
  axes: Axes, trajectories: Sequence[Trajectory], table: Table, metric: str
) -> None:
  has_tokens = all(each.tokens[-1] for each in trajectories)
  for number, each in enumerate(trajectories):
    rows = [table.rows[n].by(metric) for n in each.numbers]
    values_P = np.array([row.score.mean for row in rows])
    errors_P = np.array(
      [ratio(row.score.values_N, row.score).half_width() for row in rows]
    )
    errors_P[~np.isfinite(errors_P)] = 0.0
    look: Any = {"marker": "o", "ms": 3.5, "lw": 1.2, "capsize": 2}
    axes.errorbar(
      each.tokens if has_tokens else each.steps,
      values_P,
      yerr=errors_P,
      color=_COLOURS[number % len(_COLOURS)],
      label=each.name,
      **look,
    )
  unit = table.scores.metrics[metric][0].unit
  axes.set_title(table.name)
  axes.set_ylabel(unit if metric in (unit, "acc") else f"{metric} ({unit})")
  axes.set_xlabel("training tokens" if has_tokens else "training steps")
