"""How a trial looks in every figure, and the belief that it is set against.

M: points of a posterior; N: trials.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from jaxmerge.errors import check
from jaxmerge.reporting import style
from jaxmerge.reporting.results import Trial

# The acquisition that asked: marker, colour, name in the legend.
ASKED_BY = {
  "start": ("s", style.BLACK, "start"),
  "ei": ("o", style.BLUE, "EI"),
  "pi": ("^", style.ORANGE, "PI"),
  "ucb": ("D", style.GREEN, "UCB"),
  "thompson": ("P", style.SKY, "Thompson"),
  "explore": ("v", style.PURPLE, "explore"),
}
# More numbers than this do not fit beside each other.
MOST_NUMBERS = 30


def check_trials(trials: Sequence[Trial]) -> None:
  """Refuses trials that no figure can show.

  Raises:
    InputError: lists the trials asked by nobody known and those without a
      finite loss or a reason for it; or no trial has a loss.
  """
  check(
    [
      f'trial {trial.number} was asked by "{trial.asked_by}", not by one of'
      f" {', '.join(ASKED_BY)}"
      for trial in trials
      if trial.asked_by not in ASKED_BY
    ]
    + [
      f"trial {trial.number} has neither a finite loss nor a failure"
      for trial in trials
      if not trial.failure and not math.isfinite(trial.loss)
    ]
    + ([] if scored(trials) else ["no trial to draw"])
  )


def scored(trials: Sequence[Trial]) -> list[Trial]:
  """Those that have a loss."""
  return [trial for trial in trials if not trial.failure]


def plot_trials(
  axes: Axes, x_N: np.ndarray, trials: Sequence[Trial], y_N: np.ndarray
) -> None:
  """One marker a trial, its shape and colour by who asked."""
  for asked_by, (marker, colour, name) in ASKED_BY.items():
    chosen_N = np.array([trial.asked_by == asked_by for trial in trials], bool)
    if chosen_N.any():
      axes.plot(
        x_N[chosen_N],
        y_N[chosen_N],
        ls="",
        marker=marker,
        color=colour,
        mec="white",
        mew=0.6,
        ms=5.8 if marker != "P" else 7,
        zorder=4,
        label=name,
      )


def ring(axes: Axes, x: float, y: float, label: str) -> None:
  """Marks the chosen trial."""
  axes.plot(
    x,
    y,
    ls="",
    marker="o",
    ms=12,
    mfc="none",
    mec=style.VERMILION,
    mew=1.6,
    zorder=5,
    label=label,
  )


def belief(
  axes: Axes, x_M: np.ndarray, mean_M: np.ndarray, std_M: np.ndarray
) -> None:
  """Posterior mean and its 95% band."""
  axes.fill_between(
    x_M,
    mean_M - 1.96 * std_M,
    mean_M + 1.96 * std_M,
    color=style.SKY,
    alpha=0.3,
    lw=0,
    label="95% band",
  )
  axes.plot(x_M, mean_M, color=style.BLUE, lw=1.6, label="mean")
