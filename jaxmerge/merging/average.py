"""Weighted averages of K equal trees: float32 inside, one cast at the end.

theta = sum_k w_k theta_k (arXiv 2403.19390; for two adjacent checkpoints
lambda theta_t + (1 - lambda) theta_{t-1}).
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.errors import InputError, check
from jaxmerge.merging.groups import Groups
from jaxmerge.merging.weight_checks import normalise, weighing
from jaxmerge.parallel.exchange import whole


def check_equal_trees(trees: Sequence[Any]) -> None:
  """Raises InputError with every difference in structure, shape or dtype."""
  first, *rest = (
    {
      jax.tree_util.keystr(path) or "root": leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    for tree in trees
  )
  problems = [
    f"tree 0, leaf {name}: dtype {_dtype(leaf)} is not a floating-point type "
    "of at most 32 bits"
    for name, leaf in first.items()
    if not _is_averageable(leaf)
  ]
  for index, found in enumerate(rest, start=1):
    for name in first.keys() ^ found.keys():
      where = 0 if name in found else index
      problems.append(f"tree {where} has no leaf {name}")
    for name in first.keys() & found.keys():
      a, b = (
        f"{_dtype(tree[name])}{list(jnp.shape(tree[name]))}"
        for tree in (first, found)
      )
      if a != b:
        problems.append(f"leaf {name}: {a} in tree 0, {b} in {index}")
  check(sorted(problems))


def _dtype(leaf: Any) -> str:
  return str(getattr(leaf, "dtype", type(leaf).__name__))


def _is_averageable(leaf: Any) -> bool:
  dtype = getattr(leaf, "dtype", None)
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    return False
  return dtype.itemsize <= 4 or bool(jax.config.read("jax_enable_x64"))


def weighted_average(
  trees: Sequence[Any], weights: Sequence[float], previous: Any = None
) -> Any:
  """Averages equal trees of floating-point arrays with the given weights.

  One compile for a number of trees, whatever the weights. Shardings are kept
  and the inputs are never donated. A one-hot weight returns that very tree;
  trees of weight zero are skipped, so that their Inf or NaN does not spread.

  Args:
    trees: K pytrees of equal structure, shapes and dtypes.
    weights: K numbers; they are divided by their sum.
    previous: an earlier result whose memory may be used for this one.

  Returns:
    A tree like the inputs: the sum in float32, then cast to their dtype.

  Raises:
    InputError: the trees differ or hold other than floats, or the weights are
      not usable; the message lists every problem.
  """
  if len(trees) != len(weights):
    raise InputError(f"{len(trees)} trees but {len(weights)} weights")
  weights_K = normalise(weights)
  check_equal_trees(trees)
  used, used_weights = weighing(trees, weights_K)
  if len(used) == 1:
    return used[0]
  weights_U = jnp.asarray(used_weights, jnp.float32)
  return _average(previous, tuple(used), weights_U)


def weighted_sum(
  weights_K: Iterable[jax.Array],
  leaves: Iterable[jax.Array],
  total: jax.Array | None = None,
  *,
  skip_zeros: bool = False,
) -> jax.Array:
  """total + sum_k w_k leaf_k in float32, from left to right, not yet cast.

  The one kernel of all averages, of whole leaves and of rows that stream by.
  A weight is a scalar, or one a layer (L) of leaves whose first axis is L;
  `skip_zeros` keeps the Inf and NaN of what weighs nothing out of the sum.
  """
  terms = [] if total is None else [total]
  for weight, leaf in zip(weights_K, leaves, strict=True):
    spread = _spread(weight, leaf)
    term = spread * leaf.astype(jnp.float32)
    terms.append(jnp.where(spread == 0, 0.0, term) if skip_zeros else term)
  return functools.reduce(jnp.add, terms)


def _spread(of_layers: jax.Array, leaf: jax.Array) -> jax.Array:
  """Shapes a scalar, or numbers of the layers, to broadcast over a leaf."""
  missing = leaf.ndim - jnp.ndim(of_layers)
  return jnp.reshape(of_layers, jnp.shape(of_layers) + (1,) * missing)


# The memory of the previous merge is used for the next, never an input's.
@functools.partial(
  jax.jit, donate_argnums=0, keep_unused=True, static_argnames="are_shares"
)
def _average(
  previous: Any,
  trees: tuple[Any, ...],
  weights_GxK: jax.Array,
  group_of_leaf: Any = None,
  are_shares: bool = False,
) -> Any:
  """The trees at the weights of each leaf's group; without groups at K.

  Of shares, a tree that weighs nothing in a group does not spread its Inf or
  NaN there, and one that is alone in a group is copied bit for bit.
  """
  del previous

  def merge(weights_K: jax.Array, leaves: Sequence[jax.Array]) -> jax.Array:
    weights_K = jnp.moveaxis(weights_K, -1, 0)
    total = weighted_sum(weights_K, leaves, skip_zeros=are_shares)
    merged = total.astype(leaves[0].dtype)
    alone = jnp.sum(weights_K != 0, axis=0) == 1
    for weight, leaf in zip(weights_K, leaves) if are_shares else ():
      merged = jnp.where(_spread(alone & (weight != 0), leaf), leaf, merged)
    return merged

  rows = zip(*map(jax.tree.leaves, trees))
  if group_of_leaf is None:
    found = [merge(weights_GxK, leaves) for leaves in rows]
  else:
    groups = jax.tree.leaves(group_of_leaf)
    found = [merge(weights_GxK[g], leaves) for g, leaves in zip(groups, rows)]
  return jax.tree.unflatten(jax.tree.structure(trees[0]), found)


def grouped_sum(
  trees: Sequence[Any], weights_GxK: Sequence[Sequence[float]], groups: Groups
) -> Any:
  """grouped_average of finite trees, with weights used as they are."""
  weights = jnp.asarray(np.asarray(weights_GxK, np.float32))
  return _average(None, tuple(trees), weights, groups.of_leaf)


def weight_slopes(
  gradient: Any, trees: Iterable[Any], last: Any, groups: Groups
) -> np.ndarray:
  """d loss / d weights of a merge, from the gradient at the merged parameters.

  <d loss / d theta, theta_k - theta_K> over each group's parameters: of
  differences, which are what moves along the simplex, as the products with
  whole trees would lose them in float32.

  Args:
    gradient: like the trees, in float32.
    trees: all but the last, finite.
    last: theta_K.
    groups: which parameters belong to which.

  Returns:
    float64[G, K]; the last column is 0.
  """
  zeros = np.zeros(len(groups.names_G), np.float32)
  columns = [
    whole(_slopes(zeros, gradient, tree, last, groups.of_leaf))
    for tree in trees
  ]
  return np.stack([*columns, zeros], axis=1).astype(np.float64)


@jax.jit
def _slopes(
  total_G: jax.Array, gradient: Any, tree: Any, last: Any, group_of_leaf: Any
) -> jax.Array:
  leaves = map(jax.tree.leaves, (gradient, tree, last, group_of_leaf))
  for slope, leaf, other, group in zip(*leaves):
    change = leaf.astype(jnp.float32) - other.astype(jnp.float32)
    axes = tuple(range(jnp.ndim(group), leaf.ndim))
    total_G = total_G.at[group].add(jnp.sum(slope * change, axis=axes))
  return total_G


def grouped_average(
  trees: Sequence[Any],
  weights_GxK: Sequence[Sequence[float]],
  groups: Groups,
  previous: Any = None,
) -> Any:
  """weighted_average with weights of its own for each group of parameters.

  Raises:
    InputError: as weighted_average, or not one row of weights for each group.
  """
  if len(weights_GxK) != len(groups.names_G):
    raise InputError(
      f"{len(groups.names_G)} groups but {len(weights_GxK)} rows of weights"
    )
  rows = [normalise(weights_K) for weights_K in weights_GxK]
  if all(row == rows[0] for row in rows):
    return weighted_average(trees, rows[0], previous)
  check_equal_trees(trees)
  used, columns = weighing(trees, list(zip(*rows)))
  weights_GxU = jnp.asarray(columns, jnp.float32).T
  return _average(
    previous, tuple(used), weights_GxU, groups.of_leaf, are_shares=True
  )
