"""Weighted averages of equal trees: float32 inside, one cast at the end.

theta = sum_k w_k theta_k (arXiv 2403.19390; for two adjacent checkpoints
lambda theta_t + (1 - lambda) theta_{t-1}).

K trees.
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


def check_equal_trees(trees: Sequence[Any]) -> None:
  """Raises InputError with every difference in structure, shape or dtype."""
  first, *rest = (jax.tree_util.tree_leaves_with_path(tree) for tree in trees)
  expected = {jax.tree_util.keystr(path): leaf for path, leaf in first}
  problems = [
    f"tree 0, leaf {name or 'root'}: dtype {_dtype(leaf)} is not a "
    "floating-point type of at most 32 bits"
    for name, leaf in expected.items()
    if not _is_averageable(leaf)
  ]
  for index, leaves in enumerate(rest, start=1):
    found = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    for name in expected.keys() ^ found.keys():
      where = "0" if name in found else str(index)
      problems.append(f"tree {where} has no leaf {name or 'root'}")
    for name in expected.keys() & found.keys():
      a, b = (_kind(tree[name]) for tree in (expected, found))
      if a != b:
        problems.append(f"leaf {name or 'root'}: {a} in tree 0, {b} in {index}")
  check(sorted(problems))


def _kind(leaf: Any) -> str:
  return f"{_dtype(leaf)}{list(jnp.shape(leaf))}"


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
    previous: an earlier result that is not needed any more; its memory is
      used for this one.

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

  Args:
    weights_K: scalars; or one a layer (L) of leaves whose first axis is L.
    leaves: K arrays of one shape.
    total: the sum so far, in float32.
    skip_zeros: keep the Inf and NaN of what weighs nothing out of the sum.
  """
  terms = [] if total is None else [total]
  for weight, leaf in zip(weights_K, leaves, strict=True):
    spread = _spread(weight, leaf)
    term = spread * leaf.astype(jnp.float32)
    terms.append(jnp.where(spread == 0, 0.0, term) if skip_zeros else term)
  return functools.reduce(jnp.add, terms)


def _spread(of_layers: jax.Array, leaf: jax.Array) -> jax.Array:
  """A scalar, or numbers of the layers, to be broadcast over a leaf."""
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
  """grouped_average with weights that are used as they are.

  Args:
    trees: K equal trees, finite.
    weights_GxK: K numbers for each group.
    groups: which parameters belong to which.
  """
  weights = jnp.asarray(np.asarray(weights_GxK, np.float32))
  return _average(None, tuple(trees), weights, groups.of_leaf)


def weight_slopes(
  gradient: Any, trees: Sequence[Any], groups: Groups
) -> np.ndarray:
  """d loss / d weights of a merge, from the gradient at the merged parameters.

  <d loss / d theta, theta_k - theta_K> over each group's parameters: of
  differences, which are what moves along the simplex, as the products with
  whole trees would lose them in float32.

  Args:
    gradient: like the trees, in float32.
    trees: K equal trees, finite.
    groups: which parameters belong to which.

  Returns:
    float64[G, K]; the last column is 0.
  """
  found = _weight_slopes(
    gradient, tuple(trees), groups.of_leaf, len(groups.names_G)
  )
  return np.asarray(found, np.float64)


@functools.partial(jax.jit, static_argnums=3)
def _weight_slopes(
  gradient: Any, trees: tuple[Any, ...], group_of_leaf: Any, num_groups: int
) -> jax.Array:
  total_GxK = jnp.zeros((num_groups, len(trees)), jnp.float32)
  slopes, indices = map(jax.tree.leaves, (gradient, group_of_leaf))
  for k, tree in enumerate(trees[:-1]):
    for slope, group, leaf, last in zip(
      slopes, indices, jax.tree.leaves(tree), jax.tree.leaves(trees[-1])
    ):
      change = leaf.astype(jnp.float32) - last.astype(jnp.float32)
      products = jnp.sum(
        slope * change, axis=tuple(range(jnp.ndim(group), leaf.ndim))
      )
      total_GxK = total_GxK.at[group, k].add(products)
  return total_GxK


def grouped_average(
  trees: Sequence[Any],
  weights_GxK: Sequence[Sequence[float]],
  groups: Groups,
  previous: Any = None,
) -> Any:
  """weighted_average with weights of its own for each group of parameters.

  Args:
    trees: K pytrees of equal structure, shapes and dtypes.
    weights_GxK: K numbers for each group; divided by their sum.
    groups: which parameters belong to which.
    previous: an earlier result that is not needed any more; its memory is
      used for this one.

  Returns:
    A tree like the inputs: the sum in float32, then cast to their dtype.

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
  used = [k for k in range(len(trees)) if any(row[k] for row in rows)]
  weights_GxU = jnp.asarray([[row[k] for k in used] for row in rows])
  return _average(
    previous,
    tuple(trees[k] for k in used),
    weights_GxU.astype(jnp.float32),
    groups.of_leaf,
    are_shares=True,
  )
