"""Figures of a search: how it improved, who asked, how well it predicted.

J acquisitions, N trials.
"""

import itertools
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jaxmerge.reporting import style
from jaxmerge.reporting.results import STOPPED_EARLY, Results, Trial

# Residuals beyond this become carets at the edge.
_MOST_SIGMAS = 5.0


def convergence(results: Results) -> bytes:
  """Best search loss so far after each trial, beside the baselines."""
  trials = results.trials
  baselines = {"last": results.last.search_loss} | {
    row.name: row.search_loss
    for row in results.rows
    if row is not results.merged and not row.is_single
  }
  scored_N = np.array([not trial.failure for trial in trials])
  kept_N = scored_N & np.array([not trial.breaks for trial in trials])
  loss_N = results.as_loss(np.array([trial.loss for trial in trials]))
  number_N = np.array([trial.number for trial in trials])
  best_N = np.fmin.accumulate(np.where(kept_N, loss_N, np.nan))
  baseline_J = results.as_loss(np.array(list(baselines.values())))
  interesting = np.array([*best_N[~np.isnan(best_N)], *baseline_J])
  low, high = style.padded(interesting, 0.1)
  # Bad questions would flatten the rest: those off the axes become carets.
  highest = style.padded(loss_N[scored_N], 0.1)[1]
  high = min(high + 0.6 * (high - low), max(high, highest))
  inside_N = scored_N & (loss_N <= high)
  with style.figure(7.2, 4.2) as figure:
    axes = figure.subplots()
    for value in baselines.values():
      axes.axhline(value, color=style.GREY, lw=1, ls="--")
    look: Any = {"where": "post", "color": style.VERMILION, "lw": 1.8}
    label = f"{results.best_word} so far"
    axes.step(number_N, results.as_loss(best_N), label=label, **look)
    inside = list(itertools.compress(trials, inside_N))
    y_N = results.as_loss(loss_N[inside_N])
    style.plot_trials(axes, results, inside, number_N[inside_N], y_N)
    edge = results.as_loss(high - 0.02 * (high - low))
    _outside(axes, results, inside_N, edge)
    axes.set(
      xlim=(number_N[0] - 0.6, number_N[-1] + 0.6),
      ylim=sorted((results.as_loss(low), results.as_loss(high))),
      xlabel="trial",
      ylabel=f"search {results.noun} ({results.unit})",
    )
    style.whole_numbers(axes)
    style.label_right(axes, baselines)
    style.legend_above(figure)
    return style.png(figure)


def _outside(
  axes: Axes, results: Results, inside_N: np.ndarray, y: float
) -> None:
  """The trials without a place on the axes, along the edge of the worse."""
  trials = results.trials
  caret, where = (6, "above") if results.better == "lower" else (7, "below")
  number_N = np.array([trial.number for trial in trials])
  stopped_N = np.array([t.failure == STOPPED_EARLY for t in trials])
  failed_N = np.array([bool(t.failure) for t in trials]) & ~stopped_N
  off_N = ~(inside_N | stopped_N | failed_N)
  for chosen_N, marker, colour, face, label in (
    (off_N, caret, style.GREY, style.GREY, f"{where} the axis"),
    (failed_N, "x", style.VERMILION, "none", "failed"),
    (stopped_N, "8", style.GREY, "none", STOPPED_EARLY),
  ):
    if chosen_N.any():
      x_N, y_N = number_N[chosen_N], np.full(chosen_N.sum(), y)
      look = {"mfc": face, "mew": 1.6, "ms": 7, "clip_on": False}
      style.dots(axes, x_N, y_N, marker, colour, label=label, **look)


def hedge(results: Results) -> bytes:
  """Probability of each acquisition at each trial, and which was followed.

  There must be a trial with odds.
  """
  asked = [trial for trial in results.trials if trial.odds]
  marks = style.marks(results.trials)
  names = [name for name in marks if any(name in t.odds for t in asked)]
  number_N = np.array([trial.number for trial in asked])
  share_NxJ = np.array([[t.odds.get(n, 0.0) for n in names] for t in asked])
  top_NxJ = np.cumsum(share_NxJ, axis=1)
  middle_NxJ = top_NxJ - share_NxJ / 2
  followed = {trial.asked_by for trial in asked}
  with style.figure(7.2, 3.2) as figure:
    axes = figure.subplots()
    for name, share_N, top_N in zip(names, share_NxJ.T, top_NxJ.T):
      # The markers name the rest.
      label = "" if name in followed else marks[name].name
      look: Any = {"color": marks[name].colour, "alpha": 0.35, "lw": 0}
      axes.bar(number_N, share_N, 1.0, top_N - share_N, label=label, **look)
    # A point that no nominee was free for belongs to none of the bars.
    places = (dict(zip(names, middle_J)) for middle_J in middle_NxJ)
    marker_N = np.array(
      [place.get(trial.asked_by, 1.05) for place, trial in zip(places, asked)]
    )
    style.plot_trials(axes, results, asked, number_N, marker_N)
    axes.set(ylim=(0, 1.1), xlabel="trial", ylabel="probability")
    axes.set_xlim(number_N[0] - 0.7, number_N[-1] + 0.7)
    style.whole_numbers(axes)
    axes.grid(visible=False)
    style.legend_above(figure)
    return style.png(figure)


def calibration(results: Results) -> bytes:
  """Losses against what the process had predicted before they were scored.

  There must be a trial in `predicted`.
  """
  known = predicted(results)
  loss_N, mean_N, std_N = np.array(
    [(t.loss, t.predicted_mean, t.predicted_std) for t in known]
  ).T
  with style.figure(7.2, 3.8) as figure:
    left, right = figure.subplots(1, 2)
    left.axline((loss_N[0], loss_N[0]), slope=1, color=style.BLACK, lw=0.9)
    left.errorbar(
      loss_N, mean_N, 2 * std_N, fmt="none", ecolor=style.GREY, elinewidth=0.8
    )
    style.plot_trials(left, results, known, loss_N, mean_N)
    limits = style.padded(np.append(loss_N, mean_N), 0.08)
    left.set(xlim=limits, ylim=limits)
    left.xaxis.set_major_locator(MaxNLocator(4))
    left.set_xlabel(f"search {results.noun} ({results.unit})")
    left.set_ylabel(f"predicted (± 2 std, {results.unit})")
    _standardised(right, results, (loss_N - mean_N) / std_N)
    style.legend_above(figure)
    return style.png(figure)


def predicted(results: Results) -> list[Trial]:
  """The trials with a loss and a prediction of it, with its spread."""
  return [
    trial
    for trial in results.scored
    if trial.predicted_mean is not None and trial.predicted_std
  ]


def _standardised(axes: Axes, results: Results, sigmas_N: np.ndarray) -> None:
  """Residuals in standard deviations, by trial number."""
  trials = predicted(results)
  number_N = np.array([trial.number for trial in trials])
  within = int(np.sum(np.abs(sigmas_N) <= 2))
  axes.set_title(f"{within} of {len(trials)} within 2 std")
  axes.axhspan(-2, 2, color=style.SKY, alpha=0.3, lw=0)
  axes.axhline(0, color=style.BLACK, lw=0.9)
  inside_N = np.abs(sigmas_N) <= _MOST_SIGMAS
  inside = list(itertools.compress(trials, inside_N))
  x_N, y_N = number_N[inside_N], sigmas_N[inside_N]
  style.plot_trials(axes, results, inside, x_N, y_N)
  for sign, marker in ((1, 6), (-1, 7)):
    beyond_N = sign * sigmas_N > _MOST_SIGMAS
    if beyond_N.any():
      x_N = number_N[beyond_N]
      y_N = np.full(len(x_N), sign * 0.97 * _MOST_SIGMAS)
      style.dots(axes, x_N, y_N, marker, style.VERMILION, ms=7)
  axes.set(xlabel="trial", ylabel="measured minus predicted, in std")
  axes.set_ylim(-_MOST_SIGMAS, _MOST_SIGMAS)
  axes.set_xlim(number_N[0] - 0.7, number_N[-1] + 0.7)
  style.whole_numbers(axes)
