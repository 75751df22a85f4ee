"""Questions to the Gaussian process for the figures of what it believes.

K checkpoints, M queries.
"""

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
# Of negative weights a triangle shows those tried, and so much around them.
_AROUND = 0.1


def posterior_plots(
  told: Observations, results: Results, bounds: Bounds
) -> dict[str, bytes]:
  """The figure "posterior" for two checkpoints, "slices" for more.

  For three checkpoints there is a "ternary" too. All are one question to the
  process: one fit, one compilation.

  Args:
    told: the search's observations, in maximisation sign.
    results: of the search.
    bounds: of its weights.
  """
  count = len(results.steps)
  if count == 2:
    parts = [points.grid(2, _PAIR_POINTS)]
  else:
    chosen_K = np.array(unit_from_weights(results.chosen_weights, bounds))
    most = bounds.highest_unit(count)
    parts = [line(chosen_K, k, most) for k in range(count)]
  if count == 3:
    parts.append(_triangle(results, bounds))
  weights = [
    np.array([weights_from_unit(unit_K, bounds) for unit_K in part.tolist()])
    for part in parts
  ]
  # The process's coordinates (bayesopt.space.Simplices).
  queries = weights if bounds.negative else parts
  mean_M, std_M = surrogate.posterior(told, np.concatenate(queries))
  mean_M = results.as_loss(-mean_M)
  ends = np.cumsum([len(part) for part in parts])[:-1]
  columns = weights, np.split(mean_M, ends), np.split(std_M, ends)
  answers = list(map(Posterior, *columns))
  if count == 2:
    return {"posterior": posterior_figures.pair(answers[0], results, bounds)}
  found = {"slices": posterior_figures.slices(answers[:count], results)}
  if count == 3:
    found["ternary"] = posterior_figures.ternary(answers[3], results, bounds)
  return found


def line(chosen_K: np.ndarray, k: int, highest: float = 1.0) -> np.ndarray:
  """Unit points (MxK) from the chosen one without vertex k to that vertex.

  The others keep the proportions that they have in the chosen point; where
  that is the vertex itself, they are equal. Both ends are cut off where an
  entry would be above `highest`.
  """
  vertex_K = np.eye(len(chosen_K))[k]
  others_K = chosen_K * (1 - vertex_K)
  if not others_K.any():
    others_K = 1 - vertex_K
  others_K = others_K / others_K.sum()
  least = max(0.0, 1 - highest / others_K.max())
  share_Mx1 = np.linspace(least, highest, _SLICE_POINTS)[:, None]
  return (1 - share_Mx1) * others_K + share_Mx1 * vertex_K


def _triangle(results: Results, bounds: Bounds) -> np.ndarray:
  """Unit points (Mx3) of the triangle to draw."""
  unit_Mx3 = points.grid(3, _TRIANGLE_POINTS)
  if not bounds.negative:
    return unit_Mx3
  tried = [min(trial.weights.values()) for trial in results.scored]
  (floor, *_), highest = bounds.region(3)
  lowest = max(min(0.0, *tried) - _AROUND, floor)
  weights_Mx3 = lowest + (1 - 3 * lowest) * unit_Mx3
  allowed = weights_Mx3[weights_Mx3.max(axis=1) <= highest]
  return (allowed - floor) / bounds.scale(3)
