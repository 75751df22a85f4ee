"""Asks the Gaussian process what the figures of its belief show.

K checkpoints, M queries, N trials.
"""

from collections.abc import Sequence

import numpy as np
from etils import epath

from jaxmerge.bayesopt import simplex, surrogate
from jaxmerge.bayesopt.padding import Observations
from jaxmerge.bayesopt.reach import Reach, unit_from_weights, weights_from_unit
from jaxmerge.reporting import search_figures, simplex_figures, trial_marks
from jaxmerge.reporting.results import Trial

_PAIR_POINTS = 201
_SLICE_POINTS = 64
# With three slices under 1024 queries, a bucket of the surrogate.
_TRIANGLE_POINTS = 741


def draw_beliefs(
  folder: epath.Path,
  told: Observations,
  trials: Sequence[Trial],
  steps: Sequence[int],
  reach: Reach,
  best: int,
) -> None:
  """Writes posterior.png for two checkpoints, slices.png for more.

  For three checkpoints there is a ternary.png too.

  Args:
    folder: gets the figures.
    told: what the search's process knows, in maximisation sign.
    trials: of the search; those without a loss are left out.
    steps: of the checkpoints, oldest first.
    reach: of the last weight.
    best: number of the trial that was chosen.

  Raises:
    InputError: a trial has weights that the search does not allow, or the
      folder cannot be written.
  """
  trials = trial_marks.scored(trials)
  index = [trial.number for trial in trials].index(best)
  chosen = trials[index]
  unit_K = np.array(
    unit_from_weights([chosen.weights.get(step, 0.0) for step in steps], reach)
  )
  count = len(steps)
  if count == 2:
    parts = [simplex.grid(2, _PAIR_POINTS)]
  else:
    parts = [line(unit_K, k) for k in range(count)]
    parts += [simplex.grid(3, _TRIANGLE_POINTS)] if count == 3 else []
  answers = _ask(told, parts, reach)
  if count == 2:
    weights_Mx2, mean_M, std_M = answers[0]
    search_figures.posterior(
      folder / "posterior.png",
      weights_Mx2[:, 1],
      mean_M,
      std_M,
      trials,
      reach,
      best,
    )
    return
  if count == 3:
    simplex_figures.ternary(
      folder / "ternary.png", *answers[3], trials, reach, best
    )
  lines = [
    simplex_figures.Slice(
      step, weights_MxK[:, k], mean_M, std_M, chosen.weights.get(step, 0.0)
    )
    for k, (step, (weights_MxK, mean_M, std_M)) in enumerate(
      zip(steps, answers)
    )
  ]
  simplex_figures.slices(folder / "slices.png", lines, chosen.loss, best)


def _ask(
  told: Observations,
  parts: Sequence[np.ndarray],
  reach: Reach,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Weights, mean and standard deviation at each part's unit points.

  All parts are one question: one fit, one compilation.
  """
  mean_M, std_M = surrogate.posterior(told, np.concatenate(parts))
  ends = np.cumsum([len(part) for part in parts])[:-1]
  weights = [_weights(part, reach) for part in parts]
  return list(zip(weights, np.split(-mean_M, ends), np.split(std_M, ends)))


def line(chosen_K: np.ndarray, k: int) -> np.ndarray:
  """Unit points (MxK) from the chosen one without vertex k to that vertex.

  The others keep the proportions that they have in the chosen point; where
  that is the vertex itself, they are equal.
  """
  others_K = np.where(np.arange(len(chosen_K)) == k, 0.0, chosen_K)
  if not others_K.any():
    others_K = (np.arange(len(chosen_K)) != k).astype(np.float64)
  share_Mx1 = np.linspace(0.0, 1.0, _SLICE_POINTS)[:, None]
  vertex_K = np.eye(len(chosen_K))[k]
  return (1 - share_Mx1) * others_K / others_K.sum() + share_Mx1 * vertex_K


def _weights(units_MxK: np.ndarray, reach: Reach) -> np.ndarray:
  return np.array(
    [weights_from_unit(unit_K, reach) for unit_K in units_MxK.tolist()]
  )
