"""Maximising a function by polling around the best point known.

J functions, S seeds, P poll directions, D coordinates. A poll (compass
search) needs no gradient of an acquisition that may be flat or peaked.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmerge.simplex import points

ROUNDS = 24
_RADIUS = 0.1
# A poll costs a prediction each: 12 weights in 6 groups would take a minute.
_MOST_DIRECTIONS = 256


@functools.cache
def directions(dimension: int, groups: int) -> np.ndarray:
  """Poll directions (PxD): both ways along every edge or every axis.

  Of several simplices side by side each alone, and all together. Where that
  would be too many to poll, towards and away from every vertex instead.
  """
  if not groups:
    eye = np.eye(dimension)
    return np.concatenate([eye, -eye])
  size = dimension // groups
  eye = np.eye(size)
  pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
  edges = np.array([eye[i] - eye[j] for i, j in pairs])
  if groups > 1 and (groups + 1) * len(edges) > _MOST_DIRECTIONS:
    towards = (eye - 1 / size) * np.sqrt(2 * size / (size - 1))
    edges = np.concatenate([towards, -towards])
  if groups == 1:
    return edges
  alone = [np.kron(which, edges) for which in np.eye(groups)]
  return np.concatenate([*alone, np.tile(edges, groups)])


@functools.cache
def tangents(dimension: int, groups: int) -> np.ndarray:
  """Independent directions (PxD) that span those of a domain.

  On a simplex e_k - e_last for each other k; in a box the axes.
  """
  if not groups:
    return np.eye(dimension)
  size = dimension // groups
  edges = np.eye(size)[:-1] - np.eye(size)[-1]
  return np.kron(np.eye(groups), edges)


def climb(
  score: Callable[[Array], Array],
  seeds_JxSxD: Array,
  directions_PxD: Array,
  groups: int,
  reach: tuple[float, float] = points.UNIT,
) -> Array:
  """The best point (JxD) found from the seeds of each function; can be jitted.

  Each seed moves to the best polled point while that is better, and halves its
  radius where it is not.

  Args:
    score: maps points (JxSxPxD) to the value of function j at each (JxSxP).
    seeds_JxSxD: where to start, inside the domain.
    directions_PxD: from directions().
    groups: so many simplices side by side; 0: the unit box.
    reach: of each coordinate on a simplex.
  """

  def step(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    points_JxSxD, scores_JxS, radius_JxS = state
    moves = radius_JxS[..., None, None] * directions_PxD
    polled = points.project(points_JxSxD[:, :, None] + moves, groups, reach)
    polled_JxSxP = score(polled)
    winner_JxSx1 = jnp.argmax(polled_JxSxP, axis=-1, keepdims=True)
    top_JxS = jnp.take_along_axis(polled_JxSxP, winner_JxSx1, axis=-1)[..., 0]
    moved = jnp.take_along_axis(polled, winner_JxSx1[..., None], axis=2)
    moved_JxSxD = moved[:, :, 0]
    better_JxS = top_JxS > scores_JxS
    return (
      jnp.where(better_JxS[..., None], moved_JxSxD, points_JxSxD),
      jnp.where(better_JxS, top_JxS, scores_JxS),
      jnp.where(better_JxS, radius_JxS, radius_JxS / 2),
    )

  state = (
    seeds_JxSxD,
    score(seeds_JxSxD[:, :, None])[..., 0],
    jnp.full(seeds_JxSxD.shape[:2], _RADIUS),
  )
  points_JxSxD, scores_JxS, _ = jax.lax.fori_loop(0, ROUNDS, step, state)
  best_J = jnp.argmax(scores_JxS, axis=-1)
  return jnp.take_along_axis(points_JxSxD, best_J[:, None, None], axis=1)[:, 0]
