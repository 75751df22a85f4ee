"""Fisher-weighted averages: each parameter as sure as its model is of it.

K trees, N sequences, L targets.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.config_fields import key
from jaxmerge.merging.average import check_equal_trees
from jaxmerge.merging.method import SeedKnobs, merge_method
from jaxmerge.merging.weight_checks import weighing

# Where no model knows anything of a parameter, the plain average.
_FLOOR = 1e-8


@dataclasses.dataclass(frozen=True)
class FisherKnobs(SeedKnobs):
  fisher_labels: str = key(
    "sampled",
    "labels drawn from the model, or the data's own next tokens",
    choices=("sampled", "data"),
  )


def diagonal_fisher(
  graph: Any,
  params: Any,
  tokens_NxL1: np.ndarray,
  mask_NxL: np.ndarray,
  knobs: FisherKnobs,
) -> Any:
  """E[(d log p / d theta)^2] of each parameter, in float32.

  Matena and Raffel, arXiv 2111.09832, equation 3; log p is summed over the
  targets of a sequence. One sequence at a time: one tree of gradients.

  Labels drawn from the model itself give the Fisher information, the data's
  own next tokens the empirical one. The mask says which targets count.
  """
  count = len(tokens_NxL1)
  keys = jax.random.split(jax.random.key(knobs.seed), count)
  is_sampled = knobs.fisher_labels == "sampled"
  sequences = (tokens_NxL1, mask_NxL, keys)
  total = _sum_of_squares(graph, is_sampled, params, sequences)
  return jax.tree.map(lambda x: x / count, total)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sum_of_squares(
  graph: Any, is_sampled: bool, params: Any, sequences: tuple[Any, ...]
) -> Any:
  def log_likelihood(
    params: Any, tokens_L1: jax.Array, mask_L: jax.Array, key: jax.Array
  ) -> jax.Array:
    from flax import nnx  # which no method that averages needs

    model = nnx.merge(graph, params)
    logits_LxP = model.padded_logits(tokens_L1[None, :-1])[0]
    labels_L = tokens_L1[1:]
    if is_sampled:
      drawn_L = jax.random.categorical(key, logits_LxP)
      labels_L = jax.lax.stop_gradient(drawn_L)
    chosen_L = jnp.take_along_axis(logits_LxP, labels_L[:, None], axis=-1)
    log_p_L = chosen_L[:, 0] - jax.nn.logsumexp(logits_LxP, axis=-1)
    return jnp.sum(jnp.where(mask_L, log_p_L, 0.0))

  def add(total: Any, sequence: tuple[jax.Array, ...]) -> tuple[Any, None]:
    gradient = jax.grad(log_likelihood)(params, *sequence)
    return jax.tree.map(
      lambda t, g: t + jnp.square(g.astype(jnp.float32)), total, gradient
    ), None

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
  return jax.lax.scan(add, zeros, sequences)[0]


@merge_method(
  "fisher",
  "sum w F theta / sum w F, F the diagonal Fisher information, of"
  " `fisher_labels` drawn from the model or of the data's (arXiv 2111.09832)",
  acts="on models",
  knobs=FisherKnobs,
  weights="optional",
  weights_are="shares",
  ask=diagonal_fisher,
)
def fisher_average(
  trees: Sequence[Any],
  fishers: Sequence[Any],
  weights: Sequence[float],
  knobs: Any = None,
) -> Any:
  """sum_i w_i F_i theta_i / sum_i w_i F_i, entry by entry.

  Matena and Raffel, arXiv 2111.09832, equation 4, with a floor of 1e-8 under
  every F.

  `fishers` are from diagonal_fisher; of the weights only proportions matter.
  Raises InputError where the trees differ.
  """
  check_equal_trees(trees)
  used, weights_K = weighing(list(zip(trees, fishers, strict=True)), weights)
  if len(used) == 1:
    return used[0][0]
  return _fisher_average(*zip(*used), jnp.asarray(weights_K, jnp.float32))


@jax.jit
def _fisher_average(
  trees: tuple[Any, ...], fishers: tuple[Any, ...], weights_K: jax.Array
) -> Any:
  def average(*leaves: jax.Array) -> jax.Array:
    values, precisions = leaves[: len(trees)], leaves[len(trees) :]
    sure = [w * (f + _FLOOR) for w, f in zip(weights_K, precisions)]
    terms = [s * v.astype(jnp.float32) for s, v in zip(sure, values)]
    total = functools.reduce(jnp.add, terms)
    return (total / functools.reduce(jnp.add, sure)).astype(values[0].dtype)

  return jax.tree.map(average, *trees, *fishers)
