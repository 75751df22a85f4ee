"""Figures of GP-Hedge's choices and of the process's predictions.

Losses are in nats per token. N trials.
"""

from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jaxmerge.errors import check
from jaxmerge.reporting import style, trial_marks
from jaxmerge.reporting.results import Trial

# Residuals beyond this become carets at the edge.
_MOST_SIGMAS = 5.0


def predicted(trials: Sequence[Trial]) -> list[Trial]:
  """The trials with a loss and a prediction of it, with its spread."""
  return [
    trial
    for trial in trial_marks.scored(trials)
    if trial.predicted_mean is not None and trial.predicted_std
  ]


def hedge(path: epath.PathLike, trials: Sequence[Trial]) -> None:
  """Probability of each acquisition at each trial, and which was followed.

  Args:
    path: where the PNG goes.
    trials: of the search, by number, at least one with odds.

  Raises:
    InputError: no trial has odds, one was asked by nobody known or has odds
      for one, or the path cannot be written.
  """
  asked = [trial for trial in trials if trial.odds]
  unknown = {name for t in asked for name in t.odds} - set(trial_marks.ASKED_BY)
  check(
    [f'there are odds for "{name}"' for name in sorted(unknown)]
    + ([] if asked else ["no trial has odds to draw"])
  )
  trial_marks.check_trials(trials)
  names = [
    name for name in trial_marks.ASKED_BY if any(name in t.odds for t in asked)
  ]
  number_N = np.array([trial.number for trial in asked])
  share_NxJ = np.array(
    [[t.odds.get(name, 0.0) for name in names] for t in asked]
  )
  top_NxJ = np.cumsum(share_NxJ, axis=1)
  middle_NxJ = top_NxJ - share_NxJ / 2
  followed = {trial.asked_by for trial in asked}
  with style.figure(path, 7.2, 3.2) as figure:
    axes = figure.subplots()
    for j, name in enumerate(names):
      axes.bar(
        number_N,
        share_NxJ[:, j],
        bottom=top_NxJ[:, j] - share_NxJ[:, j],
        width=1.0,
        color=trial_marks.ASKED_BY[name][1],
        alpha=0.35,
        lw=0,
        # The markers name the rest.
        label="" if name in followed else trial_marks.ASKED_BY[name][2],
      )
    # A point that no nominee was free for belongs to none of the bars.
    marker_N = np.array(
      [
        middle_NxJ[n, names.index(trial.asked_by)]
        if trial.asked_by in names
        else 1.05
        for n, trial in enumerate(asked)
      ]
    )
    trial_marks.plot_trials(axes, number_N, asked, marker_N)
    axes.set_ylim(0, 1.1)
    axes.set_xlim(number_N[0] - 0.7, number_N[-1] + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(visible=False)
    axes.set_xlabel("trial")
    axes.set_ylabel("probability")
    style.legend_above(figure)


def calibration(path: epath.PathLike, trials: Sequence[Trial]) -> None:
  """Losses against what the process had predicted before they were scored.

  Args:
    path: where the PNG goes.
    trials: of the search, at least one with a loss and a prediction of it.

  Raises:
    InputError: no trial has both, one was asked by nobody known, or the path
      cannot be written.
  """
  known = predicted(trials)
  check([] if known else ["no trial has a prediction to draw"])
  trial_marks.check_trials(trials)
  loss_N = np.array([trial.loss for trial in known])
  mean_N = np.array([trial.predicted_mean for trial in known])
  std_N = np.array([trial.predicted_std for trial in known])
  with style.figure(path, 7.2, 3.8) as figure:
    left, right = figure.subplots(1, 2)
    left.axline((loss_N[0], loss_N[0]), slope=1, color=style.BLACK, lw=0.9)
    left.errorbar(
      loss_N,
      mean_N,
      2 * std_N,
      fmt="none",
      ecolor=style.GREY,
      elinewidth=0.8,
    )
    trial_marks.plot_trials(left, loss_N, known, mean_N)
    limits = style.padded(np.append(loss_N, mean_N), 0.08)
    left.set_xlim(limits)
    left.set_ylim(limits)
    left.xaxis.set_major_locator(MaxNLocator(4))
    left.set_xlabel("search loss (nats/token)")
    left.set_ylabel("predicted (± 2 std, nats/token)")
    _standardised(right, known, (loss_N - mean_N) / std_N)
    style.legend_above(figure)


def _standardised(
  axes: Axes, trials: Sequence[Trial], sigmas_N: np.ndarray
) -> None:
  """Residuals in standard deviations, by trial number."""
  number_N = np.array([trial.number for trial in trials])
  within = int(np.sum(np.abs(sigmas_N) <= 2))
  axes.set_title(f"{within} of {len(trials)} within 2 std")
  axes.axhspan(-2, 2, color=style.SKY, alpha=0.3, lw=0)
  axes.axhline(0, color=style.BLACK, lw=0.9)
  inside_N = np.abs(sigmas_N) <= _MOST_SIGMAS
  inside = [trial for trial, keep in zip(trials, inside_N) if keep]
  trial_marks.plot_trials(axes, number_N[inside_N], inside, sigmas_N[inside_N])
  for sign, marker in ((1, 6), (-1, 7)):
    beyond_N = sign * sigmas_N > _MOST_SIGMAS
    if beyond_N.any():
      axes.plot(
        number_N[beyond_N],
        np.full(beyond_N.sum(), sign * 0.97 * _MOST_SIGMAS),
        ls="",
        marker=marker,
        ms=7,
        color=style.VERMILION,
      )
  axes.set_ylim(-_MOST_SIGMAS, _MOST_SIGMAS)
  axes.set_xlim(number_N[0] - 0.7, number_N[-1] + 0.7)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
  axes.set_xlabel("trial")
  axes.set_ylabel("measured minus predicted, in std")
