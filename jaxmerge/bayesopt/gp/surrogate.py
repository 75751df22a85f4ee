"""Suggestions and predictions of the Gaussian process: two jitted programs.

N points (padded to a power of two), D coordinates, J acquisitions, C
candidates, Q queries, S seeds, P poll directions.

Points, mask, candidates and hyperparameters are all arrays in them, so that a
bucket and a dimension compile once. Both run in float64 on the host.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jax import Array
from jax.sharding import AxisType, Mesh

from jaxmerge.bayesopt.gp import model, padding, pattern_search
from jaxmerge.bayesopt.gp.acquisition import ACQUISITIONS, Acquisition
from jaxmerge.bayesopt.gp.compiling import compiling
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
# A Thompson draw is also taken at candidates so much nearer the incumbent.
_SHRINKS = (0.1, 0.01)
_NUM_NEAR = 64


@functools.cache
def _libraries() -> threadpoolctl.ThreadpoolController:
  """Found once: it reads the list of all loaded libraries, for 2 ms."""
  import scipy.linalg  # noqa: F401  (loads the BLAS that XLA's Cholesky calls)

  return threadpoolctl.ThreadpoolController()


@contextlib.contextmanager
def float64_on_host() -> Iterator[jax.Device]:
  """Float64 on one CPU device, whatever mesh the caller is in.

  An ambient mesh wins over the devices of the arguments, so a mesh of the one
  device takes its place (always, or the two cases would compile twice). The
  rest of the program stays in 32 bits: leave with NumPy arrays only.
  """
  model.gpjax()  # never imported inside of the float64 block
  # Not jax.devices: in a job of several processes those may be another's.
  device = jax.local_devices(backend="cpu")[0]
  mesh = Mesh(np.array([device]), ("host",), axis_types=(AxisType.Auto,))
  # OpenBLAS splits a 32 x 32 matrix over its threads, which then wait for each
  # other: on a busy machine of two cores a suggestion took 0.8 s, not 0.05.
  one_thread = _libraries().limit(limits=1, user_api="blas")
  with one_thread, jax.set_mesh(mesh), jax.enable_x64(True):
    yield device


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


def _drawn(
  posterior: Any, incumbent_D: Array, candidates_CxD: Array, normals: Array
) -> Array:
  """The maximiser of a joint draw, at candidates and nearer the incumbent."""
  stride = max(len(candidates_CxD) // _NUM_NEAR, 1)
  some = candidates_CxD[::stride][:_NUM_NEAR]
  pulled = [incumbent_D + r * (some - incumbent_D) for r in _SHRINKS]
  queries_QxD = jnp.concatenate([candidates_CxD, *pulled])
  drawn_Q = model.draw(posterior, queries_QxD, normals)
  return queries_QxD[jnp.argmax(drawn_Q)]


@functools.partial(
  jax.jit,
  static_argnames=("acquisitions", "groups", "reach"),
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
  reach: tuple[float, float],
) -> Suggestion:
  dimension = candidates_CxD.shape[1]
  points_NxD = data.rows_NxE[:, :dimension]
  seen = _observed(data, dimension)
  theta = model.fit(seen, dimension, groups)
  conditioned = model.condition_safely(theta, seen, groups)
  rewards_J, _ = model.predict(conditioned, previous_JxD)
  # Pending rows count as observed at their posterior mean (kriging believer:
  # Ginsbourger, Le Riche and Carraro 2010, "Kriging is well-suited to
  # parallelize optimization", section 4).
  believed_N, _ = model.predict(conditioned, points_NxD)
  values_N = jnp.where(data.pending_N > 0, believed_N, data.values_N)
  data = data._replace(values_N=values_N)
  posterior = model.condition_safely(theta, data, groups)
  mean_C, std_C = model.predict(posterior, candidates_CxD)
  # The incumbent is the best posterior mean at a point asked: the best
  # observed score where scores are exact, not its luckiest one where not.
  is_slope_N = jnp.any(data.rows_NxE[:, dimension + 1 :] != 0, axis=1)
  is_value_N = (data.rows_NxE[:, dimension] > 0) & ~is_slope_N
  mean_N, _ = model.predict(posterior, points_NxD)
  incumbent = jnp.argmax(jnp.where(is_value_N, mean_N, -jnp.inf))
  best, incumbent_D = mean_N[incumbent], points_NxD[incumbent]
  utilities = [a.utility for a in acquisitions if a.utility is not None]

  def score(points_JxSxPxD: Array) -> Array:
    queries_QxD = points_JxSxPxD.reshape(-1, dimension)
    mean_Q, std_Q = model.predict(posterior, queries_QxD)
    mean = mean_Q.reshape(points_JxSxPxD.shape[:-1])
    std = std_Q.reshape(mean.shape)
    return jnp.stack([u(m, s, best) for u, m, s in zip(utilities, mean, std)])

  climbed: list[Array] = []
  if utilities:
    scores_JxC = jnp.stack([u(mean_C, std_C, best) for u in utilities])
    _, top_JxS = jax.lax.top_k(scores_JxC, _NUM_SEEDS)
    shape = (len(utilities), 1, dimension)
    seeds = jnp.concatenate(
      [candidates_CxD[top_JxS], jnp.broadcast_to(incumbent_D, shape)], axis=1
    )
    climbed += [
      *pattern_search.climb(score, seeds, directions_PxD, groups, reach)
    ]
  nominees = [
    _drawn(posterior, incumbent_D, candidates_CxD, normals)
    if a.utility is None
    else climbed.pop(0)
    for a in acquisitions
  ]
  nominees_JxD = jnp.stack(nominees)
  mean_J, std_J = model.predict(conditioned, nominees_JxD)
  return Suggestion(
    nominees_JxD, rewards_J, mean_J, std_J, mean_C, std_C, theta.share
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
  key = (acquisitions, groups, reach, *np.shape(candidates_CxD))
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
