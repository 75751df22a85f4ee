"""Figures of the run and of the rows, as PNG files.

Losses are in nats per token. N: points of a curve, or rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from matplotlib.axes import Axes

from jaxmerge.errors import check
from jaxmerge.reporting import style
from jaxmerge.reporting.results import Row

# More step names than this do not fit beside each other.
_MOST_NAMES = 10


class Point(NamedTuple):
  """A loss during training: step, tokens seen, loss in nats per token."""

  step: int
  tokens: int
  loss: float


class Merged(NamedTuple):
  """The merged model, at the tokens of its last checkpoint."""

  tokens: int
  loss: float
  label: str


def training_curve(
  path: epath.PathLike,
  training: Sequence[Point],
  checkpoints: Sequence[Point],
  merged: Merged,
  tokens_saved: int | None,
) -> None:
  """The whole run above, and the neighbourhood of the merge below.

  Args:
    path: where the PNG goes.
    training: training loss as logged, in the order of training.
    checkpoints: report loss of the run's checkpoints, in that order.
    merged: the merged model's report loss.
    tokens_saved: length of the arrow from the merged model to the run's own
      curve; no arrow when it is None or 0.

  Raises:
    InputError: there is no training point or no checkpoint, or the path cannot
      be written.
  """
  check(
    ([] if training else ["no training loss to draw"])
    + ([] if checkpoints else ["no checkpoint to draw"])
  )
  train_tokens_N, train_loss_N = _columns(training)
  check_tokens_N, check_loss_N = _columns(checkpoints)
  unit, xlabel = style.token_unit(max(train_tokens_N[-1], check_tokens_N[-1]))
  smooth_N = style.smooth(train_loss_N)
  with style.figure(path, 7.2, 6.4) as figure:
    whole, near = figure.subplots(2, 1, height_ratios=(1, 1.05))
    whole.plot(
      train_tokens_N / unit, train_loss_N, color=style.SKY, lw=0.7, alpha=0.45
    )
    for axes in (whole, near):
      axes.plot(
        train_tokens_N / unit,
        smooth_N,
        color=style.BLUE,
        lw=1.6,
        label="training loss, running mean",
      )
      _held_out(axes, check_tokens_N / unit, check_loss_N, merged, unit)
      axes.set_ylabel("loss (nats/token)")
    # The first twentieth is the fall from the initial loss.
    settled = train_tokens_N[-1] / 20
    shown = np.concatenate(
      [
        smooth_N[train_tokens_N >= settled],
        check_loss_N[check_tokens_N >= settled],
        [merged.loss],
      ]
    )
    whole.set_ylim(*style.padded(shown, 0.08))
    whole.set_title("The whole run")
    whole.legend(loc="upper right")
    _zoom(near, checkpoints, merged, tokens_saved, unit)
    near.set_xlabel(xlabel)


def _held_out(
  axes: Axes,
  check_at_N: np.ndarray,
  check_loss_N: np.ndarray,
  merged: Merged,
  unit: int,
) -> None:
  """The checkpoints' curve and the merged model's star."""
  axes.plot(
    check_at_N,
    check_loss_N,
    color=style.ORANGE,
    marker="o",
    ms=5.5,
    mec="white",
    mew=0.6,
    lw=1.3,
    label="checkpoint, held-out loss",
  )
  axes.plot(
    merged.tokens / unit,
    merged.loss,
    color=style.VERMILION,
    marker="*",
    ms=13,
    mec="white",
    mew=0.8,
    ls="",
    zorder=5,
    label=merged.label,
  )


def _columns(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
  return (
    np.array([point.tokens for point in points], np.float64),
    np.array([point.loss for point in points], np.float64),
  )


def _zoom(
  axes: Axes,
  checkpoints: Sequence[Point],
  merged: Merged,
  tokens_saved: int | None,
  unit: int,
) -> None:
  """Limits, step names and the arrow of the lower panel."""
  before = [p for p in checkpoints if p.tokens <= merged.tokens][-2:]
  reach = merged.tokens + (tokens_saved or 0)
  after = [p for p in checkpoints if p.tokens > merged.tokens]
  # With the crossing known, one checkpoint beyond it closes the picture.
  inside = [p for p in after if p.tokens < reach]
  near = before + (after[: len(inside) + 2] if tokens_saved else after)
  tokens_N, loss_N = _columns([*near, Point(0, merged.tokens, merged.loss)])
  axes.set_xlim(*style.padded(tokens_N / unit, 0.12))
  low, high = style.padded(np.append(loss_N, merged.loss), 0.16)
  axes.set_ylim(low, high)
  axes.set_title("Around the merge")
  for point in near if len(near) <= _MOST_NAMES else before:
    axes.annotate(
      f"step {point.step}",
      (point.tokens / unit, point.loss),
      (5, 5),
      textcoords="offset points",
      fontsize=8.5,
    )
  if tokens_saved:
    start, end = merged.tokens / unit, reach / unit
    axes.annotate(
      "",
      (end, merged.loss),
      (start, merged.loss),
      arrowprops={
        "arrowstyle": "<->",
        "color": style.VERMILION,
        "lw": 1.4,
        "shrinkA": 8,
        "shrinkB": 0,
      },
    )
    axes.annotate(
      f"{tokens_saved:,} tokens saved",
      ((start + end) / 2, merged.loss),
      (0, -6),
      textcoords="offset points",
      ha="center",
      va="top",
      color=style.VERMILION,
      fontsize=8.5,
    )


def baselines(path: epath.PathLike, rows: Sequence[Row]) -> None:
  """Report loss of each row minus that of "last", with two standard errors.

  Single checkpoints far off the scale of the merges become arrows at the edge;
  every value stands beside its row.

  Raises:
    InputError: there is no row, or the path cannot be written.
  """
  check([] if rows else ["no row to draw"])
  delta_N = np.array([row.report_delta_vs_last for row in rows])
  stderr_N = np.array([2 * row.report_delta_stderr for row in rows])
  merge_N = np.array([not row.name.startswith("step_") for row in rows])
  extent_N = np.abs(delta_N) + stderr_N
  scale = extent_N[merge_N].max() or extent_N.max() or 0.01
  reach = 1.6 * float(scale)
  with style.figure(path, 7.2, 1.1 + 0.36 * len(rows)) as figure:
    axes = figure.subplots()
    axes.axvline(0, color=style.BLACK, lw=1)
    for y, (row, delta, stderr) in enumerate(zip(rows, delta_N, stderr_N)):
      colour = style.GREY
      if row.significant:
        colour = style.BLUE if delta < 0 else style.VERMILION
      if abs(delta) + stderr > reach:
        marker = ">" if delta > 0 else "<"
        axes.plot(
          np.sign(delta) * reach * 0.96, y, marker=marker, color=colour, ms=8
        )
      else:
        axes.errorbar(
          delta, y, xerr=stderr, fmt="o", color=colour, capsize=3, ms=6
        )
      text = (
        "reference" if row.name == "last" else f"{delta:+.4f} ± {stderr:.4f}"
      )
      axes.annotate(
        text.replace("-", "\u2212"),
        (1.02, y),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8.5,
        color=colour if row.significant else style.BLACK,
      )
    axes.set_xlim(-reach, reach)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(
      "report loss minus that of last (nats/token),"
      " ± 2 paired standard errors\n"
      "\u2190 better          worse \u2192"
    )
