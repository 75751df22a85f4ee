"""Weighted averages of equal trees: float32 inside, one cast at the end.

theta = sum_k w_k theta_k (arXiv 2403.19390; for two adjacent checkpoints
lambda theta_t + (1 - lambda) theta_{t-1}).

K trees.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.errors import InputError, check
from jaxmerge.merging.groups import Groups


def normalise(weights_K: Sequence[float]) -> tuple[float, ...]:
  """Weights divided by their sum, in float64 on the host.

  Negative weights are allowed (extrapolation); the sum must be positive.

  Raises:
    InputError: there are none, one is not finite, the sum is not positive, or
      they are so large against it that the sum of the trees loses its digits.
  """
  values = [float(w) for w in weights_K]
  if not values:
    raise InputError("there are no weights")
  check_finite(values)
  # Of the largest, so that no sum leaves the range.
  largest = max(map(abs, values)) or 1.0
  parts = [w / largest for w in values]
  total = math.fsum(parts)
  found = tuple(part / total for part in parts) if total > 0 else ()
  if not found or not all(map(math.isfinite, found)):
    raise InputError(
      f"weights {values} sum to {total * largest}, not above zero"
    )
  _check_cancellation(found, f"weights {values}, divided by their sum,")
  return found


# Each term of a float32 sum is rounded in its own size: a tree averaged with
# itself comes back with an error of up to sum |w| 2^-23 of its values.
_LARGEST_WEIGHTS = 100.0


def _check_cancellation(weights_K: Sequence[float], what: str) -> None:
  size = math.fsum(map(abs, weights_K))
  if size > _LARGEST_WEIGHTS:
    raise InputError(
      f"{what} have sizes of {size:.3g} in all: terms so large cancel and "
      f"leave rounding errors; at most {_LARGEST_WEIGHTS:g}"
    )


def check_finite(weights_K: Sequence[float]) -> None:
  """Raises InputError for weights that are NaN or Inf."""
  check(f"weight {w} is not finite" for w in weights_K if not math.isfinite(w))


def check_task_weights(weights_K: Sequence[float], scale: float) -> None:
  """Refuses factors of task vectors that are not usable in float32.

  Raises:
    InputError: one is not finite, or they are so large that what cancels
      between task vectors leaves rounding errors.
  """
  scaled = [scale * float(w) for w in weights_K]
  check_finite(scaled)
  _check_cancellation(scaled, f"weights {list(weights_K)} times the scale")


def shares(count: int, weights_K: Sequence[float]) -> tuple[float, ...]:
  """normalise() for methods that weigh `count` trees by numbers >= 0.

  Raises:
    InputError: as normalise, or not one weight >= 0 for each tree.
  """
  found = normalise(weights_K)
  if len(found) != count or min(found) < 0:
    raise InputError(
      f"the method takes a weight >= 0 for each of {count} trees, got"
      f" {list(weights_K)}"
    )
  return found


def weighing(
  trees: Sequence[Any], weights_K: Sequence[float]
) -> tuple[list[Any], list[float]]:
  """The trees that weigh anything, so that others' Inf does not spread."""
  used = [(tree, w) for tree, w in zip(trees, weights_K, strict=True) if w != 0]
  return [tree for tree, _ in used], [w for _, w in used]


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


# The memory of the previous merge is used for the next, never an input's.
_reuse = functools.partial(jax.jit, donate_argnums=0, keep_unused=True)


@_reuse
def _average(
  previous: Any, trees: tuple[Any, ...], weights_K: jax.Array
) -> Any:
  del previous
  return jax.tree.map(lambda *leaves: _sum(weights_K, leaves), *trees)


def _sum(
  weights_K: jax.Array, leaves: Sequence[jax.Array], skip_zeros: bool = False
) -> jax.Array:
  """Of weights (K or LxK) times leaves, of which L is then the first axis."""
  terms = []
  for k, leaf in enumerate(leaves):
    weight = weights_K[..., k]
    spread = weight.reshape(weight.shape + (1,) * (leaf.ndim - weight.ndim))
    term = spread * leaf.astype(jnp.float32)
    terms.append(jnp.where(spread == 0, 0.0, term) if skip_zeros else term)
  return functools.reduce(jnp.add, terms).astype(leaves[0].dtype)


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
  return _grouped_sum(tuple(trees), weights, groups.of_leaf)


@jax.jit
def _grouped_sum(
  trees: tuple[Any, ...], weights_GxK: jax.Array, group_of_leaf: Any
) -> Any:
  return jax.tree.map(
    lambda group, *leaves: _sum(weights_GxK[group], leaves),
    group_of_leaf,
    *trees,
  )


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
  return _grouped(
    previous,
    tuple(trees[k] for k in used),
    weights_GxU.astype(jnp.float32),
    groups.of_leaf,
  )


@_reuse
def _grouped(
  previous: Any,
  trees: tuple[Any, ...],
  weights_GxK: jax.Array,
  group_of_leaf: Any,
) -> Any:
  del previous

  def merge(group: jax.Array, *leaves: jax.Array) -> jax.Array:
    weights_K = weights_GxK[group]
    # A tree that weighs nothing in a group must not spread its Inf or NaN
    # there, and one that is alone in a group is copied bit for bit.
    merged = _sum(weights_K, leaves, skip_zeros=True)
    alone = jnp.sum(weights_K != 0, axis=-1) == 1
    for k, leaf in enumerate(leaves):
      is_it = alone & (weights_K[..., k] != 0)
      spread = is_it.reshape(is_it.shape + (1,) * (leaf.ndim - is_it.ndim))
      merged = jnp.where(spread, leaf, merged)
    return merged

  return jax.tree.map(merge, group_of_leaf, *trees)
