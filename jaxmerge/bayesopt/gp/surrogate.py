"""Suggestions and predictions of the Gaussian process: two jitted programs.

N points (padded to a power of two), D coordinates, J acquisitions, C
candidates, Q queries, S seeds, P poll directions.

One program fits the hyperparameters, scores the previous nominees and
maximises every acquisition. Points, mask, candidates and hyperparameters are
all arrays in it, so that a bucket and a dimension compile once.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmerge.bayesopt.gp import model, pattern_search
from jaxmerge.bayesopt.gp.acquisition import ACQUISITIONS, Acquisition
from jaxmerge.bayesopt.gp.padding import (
  MOST_ROWS,
  Observations,
  Padded,
  bucket_size,
  pad,
  standardisation,
)
from jaxmerge.bayesopt.gp.precision import float64_on_host

# XLA's CPU executor waits for ever for these programs from 128 points on when
# they are scheduled for concurrency, its default (seen with jax 0.10.2).
_COMPILER_OPTIONS = {
  "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
}

# Each climb starts at so many of the best candidates and at the incumbent.
_NUM_SEEDS = 3
# A Thompson draw is also taken at candidates so much nearer the incumbent.
_SHRINKS = (0.1, 0.01)
_NUM_NEAR = 64


class Suggestion(NamedTuple):
  """Maximisers and predictions of one fit; NumPy or JAX arrays.

  Attributes:
    nominees_JxD: the maximiser of each acquisition.
    rewards_J: standardised posterior mean at each earlier nominee.
    mean_J, std_J: of the posterior at each nominee.
    mean_C, std_C: of the posterior at each candidate.
    share: of a known standard error that is taken for noise.
  """

  nominees_JxD: Any
  rewards_J: Any
  mean_J: Any
  std_J: Any
  mean_C: Any
  std_C: Any
  share: Any


def _observed(data: Padded, dimension: int) -> Padded:
  """Pending rows as padding."""
  seen_N = 1.0 - data.pending_N
  mask_N = data.rows_NxE[:, dimension] * seen_N
  return data._replace(
    rows_NxE=data.rows_NxE.at[:, dimension].set(mask_N),
    noise_N=jnp.where(data.pending_N > 0, 1.0, data.noise_N),
  )


def _believe(data: Padded, posterior: Any, dimension: int) -> Padded:
  """Pending rows observed at their posterior mean (kriging believer).

  Ginsbourger, Le Riche and Carraro 2010, "Kriging is well-suited to
  parallelize optimization", section 4.
  """
  mean_N, _ = model.predict(posterior, data.rows_NxE[:, :dimension])
  values_N = jnp.where(data.pending_N > 0, mean_N, data.values_N)
  return data._replace(values_N=values_N)


def _near(incumbent_D: Array, candidates_CxD: Array) -> Array:
  """Candidates, and some of them, evenly, pulled towards the incumbent."""
  stride = max(len(candidates_CxD) // _NUM_NEAR, 1)
  some = candidates_CxD[::stride][:_NUM_NEAR]
  pulled = [incumbent_D + r * (some - incumbent_D) for r in _SHRINKS]
  return jnp.concatenate([candidates_CxD, *pulled])


@functools.partial(
  jax.jit,
  static_argnames=("acquisitions", "groups"),
  compiler_options=_COMPILER_OPTIONS,
)
def _suggest(
  data: Padded,
  previous_JxD: Array,
  candidates_CxD: Array,
  directions_PxD: Array,
  normals: Array,
  *,
  acquisitions: tuple[Acquisition, ...],
  groups: int,
) -> Suggestion:
  dimension = candidates_CxD.shape[1]
  seen = _observed(data, dimension)
  theta = model.fit(seen, dimension, groups)
  conditioned = model.condition_safely(theta, seen, groups)
  rewards_J, _ = model.predict(conditioned, previous_JxD)
  believed = _believe(data, conditioned, dimension)
  posterior = model.condition_safely(theta, believed, groups)
  mean_C, std_C = model.predict(posterior, candidates_CxD)
  # The incumbent is the best posterior mean at a point asked: the best
  # observed score where scores are exact, not its luckiest one where not.
  points_NxD = data.rows_NxE[:, :dimension]
  is_slope_N = jnp.any(data.rows_NxE[:, dimension + 1 :] != 0, axis=1)
  is_value_N = (data.rows_NxE[:, dimension] > 0) & ~is_slope_N
  mean_N, _ = model.predict(posterior, points_NxD)
  incumbent = jnp.argmax(jnp.where(is_value_N, mean_N, -jnp.inf))
  incumbent_D = points_NxD[incumbent]
  utilities = [a.utility for a in acquisitions if a.utility is not None]
  nominees: list[Array] = []
  if utilities:
    found_JxD = _climb(
      posterior,
      utilities,
      mean_N[incumbent],
      incumbent_D,
      candidates_CxD,
      directions_PxD,
      groups,
    )
    nominees = list(found_JxD)
  if len(utilities) < len(acquisitions):
    queries_QxD = _near(incumbent_D, candidates_CxD)
    drawn_Q = model.draw(posterior, queries_QxD, normals)
    drawn_D = queries_QxD[jnp.argmax(drawn_Q)]
    for j, a in enumerate(acquisitions):
      if a.utility is None:
        nominees.insert(j, drawn_D)
  nominees_JxD = jnp.stack(nominees)
  mean_J, std_J = model.predict(conditioned, nominees_JxD)
  return Suggestion(
    nominees_JxD, rewards_J, mean_J, std_J, mean_C, std_C, theta.share
  )


def _climb(
  posterior: Any,
  utilities: list[Any],
  best: Array,
  incumbent_D: Array,
  candidates_CxD: Array,
  directions_PxD: Array,
  groups: int,
) -> Array:
  """The maximiser of each utility (JxD)."""
  mean_C, std_C = model.predict(posterior, candidates_CxD)
  scores_JxC = jnp.stack([u(mean_C, std_C, best) for u in utilities])
  _, top_JxS = jax.lax.top_k(scores_JxC, _NUM_SEEDS)
  shape = (len(utilities), 1, len(incumbent_D))
  seeds_JxSxD = jnp.concatenate(
    [candidates_CxD[top_JxS], jnp.broadcast_to(incumbent_D, shape)], axis=1
  )

  def score(points_JxSxPxD: Array) -> Array:
    queries_QxD = points_JxSxPxD.reshape(-1, len(incumbent_D))
    mean_Q, std_Q = model.predict(posterior, queries_QxD)
    mean = mean_Q.reshape(points_JxSxPxD.shape[:-1])
    std = std_Q.reshape(mean.shape)
    return jnp.stack(
      [u(mean[j], std[j], best) for j, u in enumerate(utilities)]
    )

  return pattern_search.climb(score, seeds_JxSxD, directions_PxD, groups)


def expected_seconds(
  dimension: int, groups: int, num_trials: int, use_gradients: bool
) -> float:
  """CPU-seconds of a suggestion, once its program is compiled, by experience.

  Of the last of so many trials, with three acquisitions. Measured on one core
  of 2026 (benchmarks/suggest.py), right within a factor of two or three.
  """
  directions_PxD = pattern_search.directions(dimension, groups)
  tangents_PxD = pattern_search.tangents(dimension, groups)
  slopes = len(tangents_PxD) if use_gradients else 0
  rows = bucket_size(min(num_trials * (1 + slopes), max(MOST_ROWS, slopes + 1)))
  polls = pattern_search.ROUNDS * 3 * (_NUM_SEEDS + 1) * len(directions_PxD)
  seconds = 0.03 + 5e-9 * polls * rows * dimension
  if use_gradients:
    seconds += 0.5 + 3e-6 * rows**2 * dimension
  return seconds


@functools.partial(
  jax.jit, static_argnames=("groups",), compiler_options=_COMPILER_OPTIONS
)
def _posterior(
  data: Padded, queries_QxD: Array, *, groups: int
) -> tuple[Array, Array]:
  theta = model.fit(data, queries_QxD.shape[1], groups)
  conditioned = model.condition_safely(theta, data, groups)
  return model.predict(conditioned, queries_QxD)


def _standardised(
  observations: Observations, groups: int
) -> tuple[Padded, float, float]:
  """Padded rows, with the centre and the scale of the values."""
  model.gpjax()  # never imported inside of the float64 block
  dimension = observations.points_NxD.shape[1]
  tangents_PxD = pattern_search.tangents(dimension, groups)
  centre, scale = standardisation(observations, tangents_PxD)
  return pad(observations, centre, scale, tangents_PxD), centre, scale


def suggest(
  observations: Observations,
  previous_JxD: np.ndarray,
  candidates_CxD: np.ndarray,
  *,
  acquisitions: tuple[str, ...],
  groups: int,
  rng: np.random.Generator,
) -> Suggestion:
  """Fits the Gaussian process and maximises every acquisition.

  Args:
    observations: at least one finite score.
    previous_JxD: earlier nominees to score after this refit.
    candidates_CxD: where the climb starts, and where it is predicted too.
    acquisitions: names in ACQUISITIONS.
    groups: coordinates are points on so many simplices side by side; 0: in
      the unit box.
    rng: of a Thompson draw.
  """
  padded, centre, scale = _standardised(observations, groups)
  near = min(_NUM_NEAR, len(candidates_CxD))
  num_draws = len(candidates_CxD) + len(_SHRINKS) * near
  arrays = (
    padded,
    np.asarray(previous_JxD, np.float64),
    np.asarray(candidates_CxD, np.float64),
    pattern_search.directions(candidates_CxD.shape[1], groups),
    rng.normal(size=num_draws),
  )
  with float64_on_host() as device:
    found = _suggest(
      *jax.device_put(arrays, device),
      acquisitions=tuple(ACQUISITIONS[name] for name in acquisitions),
      groups=groups,
    )
    found = jax.tree.map(np.asarray, found)
  return found._replace(
    mean_J=centre + scale * found.mean_J,
    std_J=scale * found.std_J,
    mean_C=centre + scale * found.mean_C,
    std_C=scale * found.std_C,
  )


def posterior(
  observations: Observations, queries_MxD: np.ndarray, *, groups: int = 1
) -> tuple[np.ndarray, np.ndarray]:
  """Posterior mean and standard deviation at the queries, in original units.

  The fit is that of a suggestion; the sign of the values does not matter.
  Queries are padded too: a figure compiles once.

  Args:
    observations: at least one finite score.
    queries_MxD: where to predict.
    groups: as in suggest().
  """
  padded, centre, scale = _standardised(observations, groups)
  queries_MxD = np.asarray(queries_MxD, np.float64)
  num_queries = len(queries_MxD)
  padding = bucket_size(num_queries) - num_queries
  arrays = (padded, np.pad(queries_MxD, ((0, padding), (0, 0))))
  with float64_on_host() as device:
    result = _posterior(*jax.device_put(arrays, device), groups=groups)
    mean_M, std_M = (np.asarray(array)[:num_queries] for array in result)
  return centre + scale * mean_M, scale * std_M
