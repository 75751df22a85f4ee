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

from jaxmerge.bayesopt import simplex

_ROUNDS = 24
_RADIUS = 0.1

_State = tuple[Array, Array, Array]


@functools.cache
def directions(dimension: int, on_simplex: bool) -> np.ndarray:
  """Poll directions (PxD): both ways along every edge or every axis."""
  eye = np.eye(dimension)
  if not on_simplex:
    return np.concatenate([eye, -eye])
  pairs = [(i, j) for i in range(dimension) for j in range(dimension) if i != j]
  return np.array([eye[i] - eye[j] for i, j in pairs])


def climb(
  score: Callable[[Array], Array],
  seeds_JxSxD: Array,
  directions_PxD: Array,
  on_simplex: bool,
) -> Array:
  """The best point (JxD) found from the seeds of each function; can be jitted.

  Each seed moves to the best polled point while that is better, and halves its
  radius where it is not.

  Args:
    score: maps points (JxSxPxD) to the value of function j at each (JxSxP).
    seeds_JxSxD: where to start, inside the domain.
    directions_PxD: from directions().
    on_simplex: the domain is the simplex, else the unit box.
  """

  def step(_: Array, state: _State) -> _State:
    points_JxSxD, scores_JxS, radius_JxS = state
    moves = radius_JxS[..., None, None] * directions_PxD
    polled = points_JxSxD[:, :, None] + moves
    polled = simplex.project(polled) if on_simplex else jnp.clip(polled, 0, 1)
    polled_JxSxP = score(polled)
    winner_JxSx1 = jnp.argmax(polled_JxSxP, axis=-1, keepdims=True)
    top_JxS = jnp.take_along_axis(polled_JxSxP, winner_JxSx1, axis=-1)[..., 0]
    moved_JxSxD = jnp.take_along_axis(polled, winner_JxSx1[..., None], axis=2)[
      :, :, 0
    ]
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
  points_JxSxD, scores_JxS, _ = jax.lax.fori_loop(0, _ROUNDS, step, state)
  best_J = jnp.argmax(scores_JxS, axis=-1)
  return jnp.take_along_axis(points_JxSxD, best_J[:, None, None], axis=1)[:, 0]
