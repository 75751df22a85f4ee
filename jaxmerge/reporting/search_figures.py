"""Figures of a search: what it asked, what it believes, how it improved.

Losses are in nats per token. M: points of a posterior; N: trials.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jaxmerge.errors import InputError, check
from jaxmerge.reporting import style
from jaxmerge.reporting.results import Trial

# The acquisition that asked: marker, colour, name in the legend.
_ASKED_BY = {
  "start": ("s", style.BLACK, "start"),
  "ei": ("o", style.BLUE, "EI"),
  "pi": ("^", style.ORANGE, "PI"),
  "ucb": ("D", style.GREEN, "UCB"),
  "explore": ("v", style.PURPLE, "explore"),
}
# More numbers than this do not fit beside each other.
_MOST_NUMBERS = 30


def posterior(
  path: epath.PathLike,
  lambda_M: np.ndarray,
  mean_M: np.ndarray,
  std_M: np.ndarray,
  trials: Sequence[Trial],
  alpha: float,
  best: int,
) -> None:
  """What the Gaussian process believes about a pair, and what it was told.

  Args:
    path: where the PNG goes.
    lambda_M: weights of the later checkpoint, increasing.
    mean_M: posterior mean of the search loss at them.
    std_M: its posterior standard deviation.
    trials: the questions asked; each weighs the same two checkpoints.
    alpha: lower end of the search interval.
    best: number of the trial that was chosen.

  Raises:
    InputError: the trials are not of one pair, one was asked by nobody known,
      none has the number `best`, or the path cannot be written.
  """
  _check_trials(trials)
  steps = sorted({step for trial in trials for step in trial.weights})
  if len(steps) != 2 or best not in [trial.number for trial in trials]:
    raise InputError(
      f"a posterior over one pair needs two steps, not {steps}, and the chosen"
      f" trial ({best}) among the trials"
    )
  earlier, later = steps
  # A one-hot weight may leave out the checkpoint that it gives nothing.
  asked_N = np.array([trial.weights.get(later, 0.0) for trial in trials])
  loss_N = np.array([trial.loss for trial in trials])
  stderr_N = np.array([trial.stderr for trial in trials])
  with style.figure(path, 7.2, 4.6) as figure:
    axes = figure.subplots()
    _belief(axes, lambda_M, mean_M, std_M)
    axes.errorbar(
      asked_N, loss_N, 2 * stderr_N, fmt="none", ecolor=style.GREY, elinewidth=1
    )
    _plot_trials(axes, asked_N, trials, loss_N)
    index = [trial.number for trial in trials].index(best)
    _ring(axes, asked_N[index], loss_N[index], f"chosen (trial {best})")
    low, high = _posterior_limits(mean_M, std_M, loss_N, stderr_N)
    # The lowest part of the axes belongs to the trials' numbers.
    strip = low - 0.16 * (high - low)
    axes.set_ylim(strip - 0.04 * (high - low), high)
    axes.set_xlim(*style.padded(np.array([alpha, 1.0]), 0.03))
    axes.axvline(alpha, color=style.GREY, lw=0.8, ls=":")
    axes.axvline(1.0, color=style.GREY, lw=0.8, ls=":")
    _number_trials(axes, asked_N, loss_N, trials, strip)
    axes.set_xlabel(
      rf"$\lambda$, weight of step {later}"
      rf" (step {earlier} has $1 - \lambda$)"
    )
    axes.set_ylabel("search loss (nats/token)")
    style.legend_above(figure)


def _belief(
  axes: Axes, lambda_M: np.ndarray, mean_M: np.ndarray, std_M: np.ndarray
) -> None:
  axes.fill_between(
    lambda_M,
    mean_M - 1.96 * std_M,
    mean_M + 1.96 * std_M,
    color=style.SKY,
    alpha=0.3,
    lw=0,
    label="95% band",
  )
  axes.plot(lambda_M, mean_M, color=style.BLUE, lw=1.6, label="mean")


def _posterior_limits(
  mean_M: np.ndarray,
  std_M: np.ndarray,
  loss_N: np.ndarray,
  stderr_N: np.ndarray,
) -> tuple[float, float]:
  """Shows every trial and the mean; a very wide band may leave the axes."""
  told = np.concatenate([mean_M, loss_N - 2 * stderr_N, loss_N + 2 * stderr_N])
  low, high = style.padded(told, 0.06)
  reach = 0.35 * (high - low)
  return (
    max(low - reach, min(low, float(np.min(mean_M - 1.96 * std_M)))),
    min(high + reach, max(high, float(np.max(mean_M + 1.96 * std_M)))),
  )


def _number_trials(
  axes: Axes,
  x_N: np.ndarray,
  loss_N: np.ndarray,
  trials: Sequence[Trial],
  strip: float,
) -> None:
  """Trial numbers in a strip at the bottom, each tied to its marker."""
  if len(trials) > _MOST_NUMBERS:
    kept = loss_N <= np.minimum.accumulate(loss_N)
  else:
    kept = np.ones(len(trials), bool)
  low, high = axes.get_xlim()
  gap = 0.03 * (high - low)
  at = style.spread(x_N[kept], gap, low + gap / 2, high - gap / 2)
  numbers = np.array([trial.number for trial in trials])[kept]
  for number, x, y, x_text in zip(numbers, x_N[kept], loss_N[kept], at):
    axes.annotate(
      f"{number}",
      (x, y),
      (x_text, strip),
      ha="center",
      va="center",
      fontsize=8,
      bbox={"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none"},
      arrowprops={
        "arrowstyle": "-",
        "color": "#B5B5B5",
        "lw": 0.6,
        "shrinkA": 0,
        "shrinkB": 4,
      },
    )


def convergence(
  path: epath.PathLike, trials: Sequence[Trial], baselines: Mapping[str, float]
) -> None:
  """Lowest search loss so far after each evaluation, beside the baselines.

  Args:
    path: where the PNG goes.
    trials: at least one, in the order of their numbers, any K.
    baselines: search loss of "last", "uniform", "grid", by name.

  Raises:
    InputError: there is no trial, one was asked by nobody known, or the path
      cannot be written.
  """
  _check_trials(trials)
  loss_N = np.array([trial.loss for trial in trials])
  count_N = np.arange(1, len(trials) + 1)
  best_N = np.minimum.accumulate(loss_N)
  interesting = np.array([*best_N, *baselines.values()])
  low, high = style.padded(interesting, 0.1)
  # Bad questions would flatten the rest: those above the axes become carets.
  high = min(high + 0.6 * (high - low), max(high, style.padded(loss_N, 0.1)[1]))
  above_N = loss_N > high
  with style.figure(path, 7.2, 4.2) as figure:
    axes = figure.subplots()
    for value in baselines.values():
      axes.axhline(value, color=style.GREY, lw=1, ls="--")
    axes.step(
      count_N,
      best_N,
      where="post",
      color=style.VERMILION,
      lw=1.8,
      label="lowest so far",
    )
    inside = [trial for trial, off in zip(trials, above_N) if not off]
    _plot_trials(axes, count_N[~above_N], inside, loss_N[~above_N])
    if above_N.any():
      axes.plot(
        count_N[above_N],
        np.full(above_N.sum(), high - 0.015 * (high - low)),
        color=style.GREY,
        marker=6,
        ms=7,
        ls="",
        label="above the axis",
      )
    axes.set_ylim(low, high)
    axes.set_xlim(0.4, len(trials) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.label_right(axes, dict(baselines), 8.5)
    axes.set_xlabel("evaluations of the search loss")
    axes.set_ylabel("search loss (nats/token)")
    style.legend_above(figure)


def _check_trials(trials: Sequence[Trial]) -> None:
  check(
    [
      f'trial {trial.number} was asked by "{trial.asked_by}", not by one of'
      f" {', '.join(_ASKED_BY)}"
      for trial in trials
      if trial.asked_by not in _ASKED_BY
    ]
    + ([] if trials else ["no trial to draw"])
  )


def _plot_trials(
  axes: Axes, x_N: np.ndarray, trials: Sequence[Trial], y_N: np.ndarray
) -> None:
  for asked_by, (marker, colour, name) in _ASKED_BY.items():
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
        ms=5.8,
        zorder=4,
        label=name,
      )


def _ring(axes: Axes, x: float, y: float, label: str) -> None:
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
