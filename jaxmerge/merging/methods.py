"""Every method of the merge verb by name: what it takes and what it does.

K trees, oldest first where their order matters.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.errors import InputError
from jaxmerge.merging import coefficients, geometry, soups, task_vectors
from jaxmerge.merging.average import (
  check_task_weights,
  normalise,
  shares,
  weighing,
)
from jaxmerge.merging.model_stock import model_stock

# What a method may be told, with the values that mean nothing was said.
DEFAULTS: Mapping[str, int | float | bool | str] = {
  "newest": 3,
  "decay": 0.2,
  "beyond": 0.5,
  "penalty": 1.0,
  "scale": 1.0,
  "density": 0.2,
  "drop": 0.9,
  "seed": 0,
  "sampled": True,
  "off_diagonal": 0.9,
  "bands": 0,
  "base": "",
}


@dataclasses.dataclass(frozen=True)
class Method:
  """What a method takes.

  Attributes:
    summary: a line for --help, with the reference.
    parameters: keys of DEFAULTS that it uses.
    weights: "" takes none; "one" a number an input; "may" uniform without.
    base: needs the checkpoint that all inputs came from.
    data: needs the search split, for losses, gradients or inputs of layers.
    ordered: inputs must be given oldest first.
    whole: acts on whole tensors, not entry by entry.
    most: inputs at most; 0: any number.
  """

  summary: str
  parameters: tuple[str, ...] = ()
  weights: str = ""
  base: bool = False
  data: bool = False
  ordered: bool = False
  whole: bool = False
  most: int = 0


METHODS: Mapping[str, Method] = {
  "uniform": Method("the plain mean (model soup, arXiv 2203.05482)"),
  "weights": Method(
    "the weights of --weights, divided by their sum; with `bands` for each"
    " group of layers",
    ("bands",),
    weights="one",
  ),
  "lawa": Method(
    "the mean of the `newest` (LAWA, arXiv 2209.14981; SMA of PMA)",
    ("newest",),
    ordered=True,
  ),
  "wma": Method("weights 1, 2, ..., K (PMA, arXiv 2505.12082)", ordered=True),
  "ema": Method(
    "moving average with `decay` (PMA, arXiv 2505.12082)",
    ("decay",),
    ordered=True,
  ),
  "linear": Method(
    "a linear learning-rate decay: the mean (WSM, arXiv 2507.17634)",
    ordered=True,
  ),
  "1-sqrt": Method("a 1-sqrt learning-rate decay (WSM)", ordered=True),
  "cosine": Method("a cosine learning-rate decay (WSM)", ordered=True),
  "secant": Method(
    "`beyond` the newer of two windows of `newest`, away from the older",
    ("newest", "beyond"),
    ordered=True,
  ),
  "metric": Method(
    "weights (1 / loss)^`penalty` (arXiv 2504.18580)", ("penalty",), data=True
  ),
  "greedy": Method(
    "greedy soup on the search split (arXiv 2203.05482)", data=True
  ),
  "fisher": Method(
    "weighted by Fisher information, of `sampled` labels or the data's"
    " (arXiv 2111.09832)",
    ("sampled", "seed"),
    weights="may",
    data=True,
  ),
  "regmean": Method(
    "linear layers fitted on their inputs, Gram off-diagonals times"
    " `off_diagonal` (RegMean, arXiv 2212.09849)",
    ("off_diagonal",),
    weights="may",
    data=True,
  ),
  "slerp": Method(
    "along the arc between two, --weights=1-t,t (Shoemake 1985)",
    weights="one",
    most=2,
    whole=True,
  ),
  "karcher": Method(
    "mean direction and mean length", weights="may", whole=True
  ),
  "task_arithmetic": Method(
    "`base` + `scale` * sum of w_i (input - `base`) (arXiv 2212.04089);"
    " of two: the residual A + B - C",
    ("base", "scale"),
    weights="may",
    base=True,
  ),
  "ties": Method(
    "trimmed to `density`, signs elected (arXiv 2306.01708)",
    ("base", "scale", "density"),
    weights="may",
    base=True,
    whole=True,
  ),
  "dare": Method(
    "task arithmetic after dropping the share `drop` (arXiv 2311.03099)",
    ("base", "scale", "drop", "seed"),
    weights="may",
    base=True,
    whole=True,
  ),
  "dare_ties": Method(
    "TIES after dropping the share `drop`",
    ("base", "scale", "density", "drop", "seed"),
    weights="may",
    base=True,
    whole=True,
  ),
  "model_stock": Method(
    "between `base` and the mean, by their angles (arXiv 2403.19522)",
    ("base",),
    base=True,
    whole=True,
  ),
}


# Averages whose weights are found by losses.
MEASURED = ("metric", "greedy")


def help_text() -> str:
  """A line for each method."""
  width = max(map(len, METHODS))
  return "\n".join(
    f"  {name:<{width}}  {method.summary}" for name, method in METHODS.items()
  )


def problems(
  name: str,
  count: int,
  weights: Sequence[float],
  parameters: Mapping[str, Any],
) -> list[str]:
  """What is wrong with a merge before any file is opened.

  Args:
    name: of the method.
    count: number of inputs.
    weights: as typed, none or one an input.
    parameters: values of DEFAULTS' keys.
  """
  method = METHODS.get(name)
  if method is None:
    return [f"unknown config.method {name!r}; known are {', '.join(METHODS)}"]
  found = []
  least = 1 if method.base and name != "model_stock" else 2
  if count < least or (method.most and count > method.most):
    wanted = f"{method.most}" if method.most else f"{least} or more"
    found.append(f"the method {name!r} takes {wanted} inputs, got {count}")
  if weights and not method.weights:
    found.append(f"the method {name!r} takes no --weights")
  # The embeddings, each band of layers and the head.
  groups = parameters["bands"] + 2 if parameters["bands"] else 1
  takes = method.weights == "one" or (method.weights and weights)
  if takes and len(weights) != count * groups:
    each = f" in {groups} groups" if groups > 1 else ""
    found.append(f"{count} inputs{each} but {len(weights)} --weights")
  found += [
    f"the method {name!r} does not use config.{key}; leave it at {default!r}"
    for key, default in DEFAULTS.items()
    if key not in method.parameters and parameters[key] != default
  ]
  if method.base and not parameters["base"]:
    found.append(f"the method {name!r} needs config.base")
  found += _range_problems(parameters)
  return found or _weight_problems(name, count, weights, parameters)


def _weight_problems(
  name: str,
  count: int,
  weights: Sequence[float],
  parameters: Mapping[str, Any],
) -> list[str]:
  """Of a method that takes what it was given."""
  check: Callable[..., Any] = normalise
  if name in ("karcher", "ties", "dare_ties", "fisher", "regmean"):
    check = functools.partial(shares, count)
  if name in ("task_arithmetic", "dare"):
    check = functools.partial(check_task_weights, scale=parameters["scale"])
    weights = weights or [1.0] * count
  # With bands the weights of one group after the other.
  rows = [weights[i : i + count] for i in range(0, len(weights), count)]
  try:
    rows = rows or [fixed_weights(name, count, weights, parameters) or []]
    for row in filter(None, rows):
      check(row)
  except InputError as error:
    return error.problems
  return []


def _range_problems(parameters: Mapping[str, Any]) -> list[str]:
  ranges = {
    "newest": (parameters["newest"] >= 1, "at least 1"),
    "decay": (0 < parameters["decay"] <= 1, "in (0, 1]"),
    "penalty": (parameters["penalty"] >= 0, "at least 0"),
    "density": (0 < parameters["density"] <= 1, "in (0, 1]"),
    "drop": (0 <= parameters["drop"] < 1, "in [0, 1)"),
    "seed": (parameters["seed"] >= 0, "at least 0"),
    "bands": (parameters["bands"] >= 0, "at least 0"),
    "off_diagonal": (0 <= parameters["off_diagonal"] <= 1, "in [0, 1]"),
  }
  return [
    f"config.{key} must be {words}, got {parameters[key]}"
    for key, (holds, words) in ranges.items()
    if not holds
  ]


def fixed_weights(
  name: str,
  count: int,
  weights: Sequence[float],
  parameters: Mapping[str, Any],
) -> list[float] | None:
  """The weights of a method that needs neither losses nor trees; else None.

  Raises:
    InputError: weights or a window that are not usable.
  """
  if name == "uniform":
    return coefficients.uniform(count)
  if name == "weights":
    return list(normalise(weights))
  if name == "lawa":
    return coefficients.lawa(count, parameters["newest"])
  if name == "wma":
    return coefficients.wma(count)
  if name == "ema":
    return coefficients.ema(count, parameters["decay"])
  if name == "secant":
    return coefficients.secant(
      count, parameters["newest"], parameters["beyond"]
    )
  if name in coefficients.SCHEDULES:
    return coefficients.of_schedule(coefficients.SCHEDULES[name], count)
  return None


def measured_weights(
  name: str,
  losses_K: Sequence[float],
  loss: Callable[[list[float]], float],
  parameters: Mapping[str, Any],
) -> list[float]:
  """The weights of a method that needs losses.

  Args:
    name: of the method, one of MEASURED.
    losses_K: of each input alone, on the search split.
    loss: of the average at given weights, on the search split.
    parameters: of the method.
  """
  if name == "metric":
    return soups.metric_weights(losses_K, parameters["penalty"])
  return soups.greedy_soup(losses_K, loss)


def merge_trees(
  name: str,
  trees: Sequence[Any],
  weights: Sequence[float],
  parameters: Mapping[str, Any],
  *,
  base: Any = None,
  first_layer: int = 0,
) -> Any:
  """The merged tree of a method that needs only the trees and their base.

  Args:
    name: of the method.
    trees: K pytrees of equal structure, shapes and dtypes.
    weights: K numbers.
    parameters: of the method.
    base: the tree that all came from, for methods that need it.
    first_layer: number of the first layer of stacked leaves, where the trees
      hold only some.

  Raises:
    InputError: the trees differ, or weights that are not usable.
  """
  if name in ("dare", "dare_ties"):
    # One of weight zero might as well not be there: it has no draws.
    trees, weights = weighing(trees, weights)
    # In float32 until the end: dropping rescales, and must not round as well.
    thin = task_vectors.dropped(
      _wide(base),
      [_wide(tree) for tree in trees],
      drop=parameters["drop"],
      seed=parameters["seed"],
      first_layer=first_layer,
    )
    then = "task_arithmetic" if name == "dare" else "ties"
    merged = merge_trees(then, thin, weights, parameters, base=_wide(base))
    return jax.tree.map(lambda x, like: x.astype(like.dtype), merged, base)
  if name == "task_arithmetic":
    scaled = [parameters["scale"] * w for w in weights]
    return task_vectors.task_arithmetic(base, trees, scaled)
  if name == "ties":
    return task_vectors.ties(
      base,
      trees,
      weights,
      density=parameters["density"],
      scale=parameters["scale"],
    )
  if name == "model_stock":
    return model_stock(base, trees)
  if name == "slerp":
    return geometry.slerp(trees, weights)
  if name == "karcher":
    return geometry.karcher_mean(trees, weights)
  raise ValueError(f"the method {name!r} needs more than trees")


def _wide(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
