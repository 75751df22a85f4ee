"""Thompson sampling: the best point of one joint draw of the posterior.

C candidates, Q queries, D coordinates. Part of a jitted program.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxmerge.bayesopt.gp import model

# A Thompson draw is also taken at candidates so much nearer the incumbent.
_SHRINKS = (0.1, 0.01)
_NUM_NEAR = 64


def num_draws(num_candidates: int) -> int:
  """The number of queries of a draw (Q)."""
  return num_candidates + len(_SHRINKS) * min(_NUM_NEAR, num_candidates)


def drawn(
  posterior: Any,
  incumbent_D: Array,
  candidates_CxD: Array,
  normals: Array,
  worth: Callable[[Array, Array], Array],
) -> Array:
  """The maximiser of a joint draw, at candidates and nearer the incumbent.

  `worth` tells what a draw is worth at the queries.
  """
  stride = max(len(candidates_CxD) // _NUM_NEAR, 1)
  some = candidates_CxD[::stride][:_NUM_NEAR]
  pulled = [incumbent_D + r * (some - incumbent_D) for r in _SHRINKS]
  queries_QxD = jnp.concatenate([candidates_CxD, *pulled])
  drawn_Q = worth(model.draw(posterior, queries_QxD, normals), queries_QxD)
  return queries_QxD[jnp.argmax(drawn_Q)]
