"""Suggestions and predictions of the Gaussian process: two jitted programs.

N points (padded to a power of two), D coordinates, J acquisitions, C
candidates, Q queries, S seeds, P poll directions, T constraints.

Points, mask, candidates and hyperparameters are all arrays in them, so that a
bucket and a dimension compile once. Both run in float64 on the host.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmerge.bayesopt.gp import (
  feasibility,
  model,
  padding,
  pattern_search,
  thompson,
)
from jaxmerge.bayesopt.gp.acquisition import ACQUISITIONS, Acquisition
from jaxmerge.bayesopt.gp.belief import Belief
from jaxmerge.bayesopt.gp.compiling import compiling
from jaxmerge.bayesopt.gp.feasibility import Margins
from jaxmerge.bayesopt.gp.host import float64_on_host
from jaxmerge.bayesopt.gp.padding import Observations, Padded
from jaxmerge.simplex import points

# XLA's CPU executor waits for ever for these programs from 128 points on when
# they are scheduled for concurrency, its default (seen with jax 0.10.2).
# They run for milliseconds and compile for seconds, of which less optimisation
# by LLVM saves a quarter; they run as fast.
_COMPILER_OPTIONS: dict[str, str | int] = {
  "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
  "xla_backend_optimization_level": 1,
}
# The posterior at the trials and the one on the grid of a pair are one program.
_FEWEST_QUERIES = 256

# Each climb starts at so many of the best candidates and at the incumbent.
_NUM_SEEDS = 3


class Suggestion(NamedTuple):
  """Maximisers and predictions of one fit; NumPy or JAX arrays.

  Attributes:
    nominees_JxD: the maximiser of each acquisition.
    rewards_J: standardised posterior mean at each earlier nominee.
    mean_J, std_J: of the posterior at each nominee.
    mean_C, std_C: of the posterior at each candidate.
    share: of a known standard error that is taken for noise.
    log_feasible_C: log of the probability that each candidate keeps to all
      constraints; None without any.
  """

  nominees_JxD: Any
  rewards_J: Any
  mean_J: Any
  std_J: Any
  mean_C: Any
  std_C: Any
  share: Any
  log_feasible_C: Any


@functools.partial(
  jax.jit,
  static_argnames=("acquisitions", "groups", "reach"),
  compiler_options=_COMPILER_OPTIONS,
)
def _suggest(
  data: Padded,
  margins: Margins | None,
  previous_JxD: Array,
  candidates_CxD: Array,
  directions_PxD: Array,
  normals: Array,
  *,
  acquisitions: tuple[Acquisition, ...],
  groups: int,
  reach: tuple[float, float],
) -> Suggestion:
  dimension = candidates_CxD.shape[1]
  belief = Belief.of(data, margins, dimension, groups)
  rewards_J = belief.rewards(previous_JxD)
  mean_C, std_C = model.predict(belief.posterior, candidates_CxD)
  log_C = belief.log_probability(candidates_CxD)
  polled = [a for a in acquisitions if a.utility is not None]

  def score(points_JxSxPxD: Array) -> Array:
    queries_QxD = points_JxSxPxD.reshape(-1, dimension)
    mean_Q, std_Q = model.predict(belief.posterior, queries_QxD)
    mean = mean_Q.reshape(points_JxSxPxD.shape[:-1])
    std = std_Q.reshape(mean.shape)
    log = belief.log_probability(points_JxSxPxD)
    logs = itertools.repeat(None) if log is None else log
    return jnp.stack([*map(belief.utility, polled, logs, mean, std)])

  climbed: list[Array] = []
  if polled:
    scores_JxC = jnp.stack(
      [belief.utility(a, log_C, mean_C, std_C) for a in polled]
    )
    _, top_JxS = jax.lax.top_k(scores_JxC, _NUM_SEEDS)
    shape = (len(polled), 1, dimension)
    incumbents = jnp.broadcast_to(belief.incumbent_D, shape)
    seeds = jnp.concatenate([candidates_CxD[top_JxS], incumbents], axis=1)
    climbed += [
      *pattern_search.climb(score, seeds, directions_PxD, groups, reach)
    ]
  nominees = [
    thompson.drawn(
      belief.posterior,
      belief.incumbent_D,
      candidates_CxD,
      normals,
      belief.worth,
    )
    if a.utility is None
    else climbed.pop(0)
    for a in acquisitions
  ]
  nominees_JxD = jnp.stack(nominees)
  mean_J, std_J = model.predict(belief.observed, nominees_JxD)
  return Suggestion(
    nominees_JxD, rewards_J, mean_J, std_J, mean_C, std_C, belief.share, log_C
  )


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
  rows = padding.bucket_size(
    min(num_trials * (1 + slopes), max(padding.MOST_ROWS, slopes + 1))
  )
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
  dimension = observations.points_NxD.shape[1]
  tangents_PxD = pattern_search.tangents(dimension, groups)
  centre, scale = padding.standardisation(observations, tangents_PxD)
  return padding.pad(observations, centre, scale, tangents_PxD), centre, scale


def suggest(
  observations: Observations,
  previous_JxD: np.ndarray,
  candidates_CxD: np.ndarray,
  *,
  acquisitions: tuple[str, ...],
  groups: int,
  rng: np.random.Generator,
  reach: tuple[float, float] = points.UNIT,
  margins: Sequence[Observations] = (),
) -> Suggestion:
  """Fits the Gaussian process and maximises every acquisition.

  Args:
    observations: at least one finite score.
    previous_JxD: earlier nominees to score after this refit.
    candidates_CxD: where the climb starts, and where it is predicted too.
    acquisitions: names in ACQUISITIONS.
    groups: so many simplices side by side; 0: the unit box.
    rng: of a Thompson draw.
    reach: of each coordinate on a simplex.
    margins: by how much the same trials keep to each constraint.
  """
  padded, centre, scale = _standardised(observations, groups)
  arrays = (
    padded,
    feasibility.standardised(margins, groups),
    np.asarray(previous_JxD, np.float64),
    np.asarray(candidates_CxD, np.float64),
    pattern_search.directions(candidates_CxD.shape[1], groups),
    rng.normal(size=thompson.num_draws(len(candidates_CxD))),
  )
  shape = np.shape(candidates_CxD)
  key = (acquisitions, groups, reach, len(margins), *shape)
  with (
    compiling("suggestion", padded.rows_NxE.shape, key),
    float64_on_host() as device,
  ):
    found = _suggest(
      *jax.device_put(arrays, device),
      acquisitions=tuple(ACQUISITIONS[name] for name in acquisitions),
      groups=groups,
      reach=reach,
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

  The fit and the arguments are those of a suggestion; the sign of the values
  does not matter. Queries are padded too: a figure compiles once.
  """
  padded, centre, scale = _standardised(observations, groups)
  queries_MxD = np.asarray(queries_MxD, np.float64)
  num_queries = len(queries_MxD)
  unused = max(_FEWEST_QUERIES, padding.bucket_size(num_queries)) - num_queries
  arrays = (padded, np.pad(queries_MxD, ((0, unused), (0, 0))))
  key = (groups, *arrays[1].shape)
  with (
    compiling("posterior", padded.rows_NxE.shape, key),
    float64_on_host() as device,
  ):
    result = _posterior(*jax.device_put(arrays, device), groups=groups)
    mean_M, std_M = (np.asarray(array)[:num_queries] for array in result)
  return centre + scale * mean_M, scale * std_M
