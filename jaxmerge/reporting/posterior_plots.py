"""Asks the Gaussian process of a search for its figures.

K checkpoints, M queries.
"""

from collections.abc import Sequence

import numpy as np

from jaxmerge.bayesopt.gp import surrogate
from jaxmerge.bayesopt.gp.padding import Observations
from jaxmerge.reporting import posterior_figures
from jaxmerge.reporting.posterior_figures import Posterior
from jaxmerge.reporting.results import Results
from jaxmerge.simplex import points
from jaxmerge.simplex.bounds import Bounds, unit_from_weights, weights_from_unit

_PAIR_POINTS = 201
_SLICE_POINTS = 64
# With three slices under 1024 queries, a bucket of the surrogate.
_TRIANGLE_POINTS = 741


def posterior_plots(
  observations: Observations, results: Results, bounds: Bounds
) -> dict[str, bytes]:
  """The figure "posterior" for two checkpoints, "slices" for more.

  For three checkpoints there is a "ternary" too.

  The observations are in maximisation sign.
  """
  count = len(results.steps)
  if count == 2:
    parts = [points.grid(2, _PAIR_POINTS)]
    [answer] = _ask(observations, parts, results, bounds)
    return {"posterior": posterior_figures.pair(answer, results, bounds)}
  unit_K = np.array(unit_from_weights(results.chosen_weights, bounds))
  parts = [line(unit_K, k) for k in range(count)]
  parts += [points.grid(3, _TRIANGLE_POINTS)] if count == 3 else []
  answers = _ask(observations, parts, results, bounds)
  found = {"slices": posterior_figures.slices(answers[:count], results)}
  if count == 3:
    found["ternary"] = posterior_figures.ternary(answers[3], results, bounds)
  return found


def _ask(
  observations: Observations,
  parts: Sequence[np.ndarray],
  results: Results,
  bounds: Bounds,
) -> list[Posterior]:
  """The posterior at each part's unit points (MxK).

  All parts are one question: one fit, one compilation.
  """
  mean_M, std_M = surrogate.posterior(observations, np.concatenate(parts))
  mean_M = results.as_loss(-mean_M)
  ends = np.cumsum([len(part) for part in parts])[:-1]
  weights = [
    np.array([weights_from_unit(unit_K, bounds) for unit_K in part.tolist()])
    for part in parts
  ]
  return list(
    map(Posterior, weights, np.split(mean_M, ends), np.split(std_M, ends))
  )


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
