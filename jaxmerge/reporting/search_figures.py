"""Figures of a search: what it asked, what it believes, how it improved.

Losses are in nats per token. M: points of a posterior; N: trials.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jaxmerge.bayesopt.reach import Reach
from jaxmerge.errors import InputError
from jaxmerge.reporting import style, trial_marks
from jaxmerge.reporting.results import STOPPED_EARLY, Trial


def posterior(
  path: epath.PathLike,
  lambda_M: np.ndarray,
  mean_M: np.ndarray,
  std_M: np.ndarray,
  trials: Sequence[Trial],
  reach: Reach,
  best: int,
) -> None:
  """What the Gaussian process believes about a pair, and what it was told.

  Args:
    path: where the PNG goes.
    lambda_M: weights of the later checkpoint, increasing.
    mean_M: posterior mean of the search loss at them.
    std_M: its posterior standard deviation.
    trials: the questions asked; each weighs the same two checkpoints.
    reach: of the later checkpoint's weight.
    best: number of the trial that was chosen.

  Raises:
    InputError: the trials are not of one pair, one was asked by nobody known,
      none has the number `best`, or the path cannot be written.
  """
  trial_marks.check_trials(trials)
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
    trial_marks.belief(axes, lambda_M, mean_M, std_M)
    axes.errorbar(
      asked_N, loss_N, 2 * stderr_N, fmt="none", ecolor=style.GREY, elinewidth=1
    )
    trial_marks.plot_trials(axes, asked_N, trials, loss_N)
    index = [trial.number for trial in trials].index(best)
    trial_marks.ring(
      axes, asked_N[index], loss_N[index], f"chosen (trial {best})"
    )
    low, high = _posterior_limits(mean_M, std_M, loss_N, stderr_N)
    # The lowest part of the axes belongs to the trials' numbers.
    strip = low - 0.16 * (high - low)
    axes.set_ylim(strip - 0.04 * (high - low), high)
    ends = (reach.alpha, 1.0, reach.highest)
    axes.set_xlim(*style.padded(np.array(ends), 0.03))
    for end in ends:
      axes.axvline(end, color=style.GREY, lw=0.8, ls=":")
    _number_trials(axes, asked_N, loss_N, trials, strip)
    axes.set_xlabel(
      rf"$\lambda$, weight of step {later}"
      rf" (step {earlier} has $1 - \lambda$)"
    )
    axes.set_ylabel("search loss (nats/token)")
    style.legend_above(figure)


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
  if len(trials) > trial_marks.MOST_NUMBERS:
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
    trials: in the order of their numbers, any K, at least one with a loss.
    baselines: search loss of "last", "uniform", "grid", by name.

  Raises:
    InputError: no trial has a loss, one was asked by nobody known, or the path
      cannot be written.
  """
  trial_marks.check_trials(trials)
  scored_N = np.array([not trial.failure for trial in trials])
  loss_N = np.array([trial.loss for trial in trials])
  count_N = np.arange(1, len(trials) + 1)
  best_N = np.minimum.accumulate(np.where(scored_N, loss_N, np.inf))
  interesting = np.array([*best_N[np.isfinite(best_N)], *baselines.values()])
  low, high = style.padded(interesting, 0.1)
  # Bad questions would flatten the rest: those above the axes become carets.
  highest = style.padded(loss_N[scored_N], 0.1)[1]
  high = min(high + 0.6 * (high - low), max(high, highest))
  inside_N = scored_N & (loss_N <= high)
  with style.figure(path, 7.2, 4.2) as figure:
    axes = figure.subplots()
    for value in baselines.values():
      axes.axhline(value, color=style.GREY, lw=1, ls="--")
    axes.step(
      count_N,
      np.where(np.isfinite(best_N), best_N, np.nan),
      where="post",
      color=style.VERMILION,
      lw=1.8,
      label="lowest so far",
    )
    inside = [trial for trial, keep in zip(trials, inside_N) if keep]
    trial_marks.plot_trials(axes, count_N[inside_N], inside, loss_N[inside_N])
    _outside(axes, trials, inside_N, high - 0.02 * (high - low))
    axes.set_ylim(low, high)
    axes.set_xlim(0.4, len(trials) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.label_right(axes, dict(baselines), 8.5)
    axes.set_xlabel("evaluations of the search loss")
    axes.set_ylabel("search loss (nats/token)")
    style.legend_above(figure)


def _outside(
  axes: Axes, trials: Sequence[Trial], inside_N: np.ndarray, y: float
) -> None:
  """The trials without a place on the axes, along their upper edge."""
  count_N = np.arange(1, len(trials) + 1)
  stopped_N = np.array([t.failure == STOPPED_EARLY for t in trials])
  failed_N = np.array([bool(t.failure) for t in trials]) & ~stopped_N
  above_N = ~(inside_N | stopped_N | failed_N)
  for chosen_N, marker, colour, face, label in (
    (above_N, 6, style.GREY, style.GREY, "above the axis"),
    (failed_N, "x", style.VERMILION, "none", "failed"),
    (stopped_N, "8", style.GREY, "none", STOPPED_EARLY),
  ):
    if chosen_N.any():
      axes.plot(
        count_N[chosen_N],
        np.full(chosen_N.sum(), y),
        color=colour,
        marker=marker,
        mfc=face,
        mew=1.6,
        ms=7,
        ls="",
        clip_on=False,
        label=label,
      )
