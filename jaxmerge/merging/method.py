"""The record of a merge method, and the table of all methods.

A file in merging/methods/ registers its own; so does a file of the user's that
a config file imports.

K inputs, oldest first where their order matters.
"""

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax

from jaxmerge.config_fields import PerInput, key
from jaxmerge.errors import InputError
from jaxmerge.merging.group_texts import names_of, weight_count_problems
from jaxmerge.merging.weight_checks import normalise, shares, task_weights
from jaxmerge.registry import Registry

F = TypeVar("F", bound=Callable[..., Any])
Tensors = Sequence[jax.Array]  # K


@dataclasses.dataclass(frozen=True)
class NoKnobs:
  """A method without parameters."""


@dataclasses.dataclass(frozen=True)
class BaseKnobs:
  """A method of task vectors; having this key is how it asks for the base."""

  base: str = key("", "the checkpoint that all inputs came from")


@dataclasses.dataclass(frozen=True)
class SeedKnobs:
  """A method that draws at random."""

  seed: int = key(0, "of the draws", at_least=0)


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to merge K inputs into one.

  `acts` says what `function` is called with; `knobs` is the instance of the
  record's dataclass, `weights_K` are ready for use (see `usable`).

  | acts | function |
  |---|---|
  | "on weights" | (weights_K, knobs) -> weights of the average |
  | "on losses" | (losses_K, loss of given weights, knobs) -> the same |
  | "on grams" | (R'R of successive differences, knobs) -> the same |
  | "on derivatives" | (solve, knobs) -> the same by name of each group |
  | "elementwise" | (tensors_K, weights_K, knobs) -> tensor, of any entries |
  | "per tensor" | the same, of a whole tensor, of a stack each layer |
  | "on models" | (trees_K, answers_K, weights_K, knobs) -> tree |

  R'R is float64[K - 1, K - 1], the inner products of the differences between
  each input and the one before. Tensors are float32 inside of a jit; the
  result is cast once. A method of tensors whose knobs have a `base` is given
  its tensor as one more argument. Without a base, equal inputs must give that
  input.

  Attributes:
    name: as config.method names it.
    summary: a line for --help and docs/merge.md, with the reference.
    function: does it.
    acts: what the function is called with.
    knobs: a frozen dataclass of config_fields.key.
    weights: whether --weights must or may say a number for each input.
    weights_are: divided by their sum; the same, none below zero; or used as
      they are, times the knob `scale`.
    ordered: inputs must be given oldest first.
    prepare: changes each input at random before, by knobs with a `seed` and a
      `base`: (tensor, key, knobs, base) -> tensor.
    ask: what "on models" asks each model: (graph, params, tokens_NxL1,
      mask_NxL, knobs) -> answer.
    least: inputs at least.
    most: inputs at most; 0: any number.
  """

  name: str
  summary: str
  function: Callable[..., Any]
  acts: Literal[
    "on weights",
    "on losses",
    "on grams",
    "on derivatives",
    "elementwise",
    "per tensor",
    "on models",
  ]
  knobs: type = NoKnobs
  weights: Literal["none", "optional", "required"] = "none"
  weights_are: Literal["proportions", "shares", "factors"] = "proportions"
  ordered: bool = False
  prepare: Callable[..., Any] | None = None
  ask: Callable[..., Any] | None = None
  least: int = 2
  most: int = 0

  def __post_init__(self) -> None:
    if (self.acts == "on models") != (self.ask is not None):
      raise InputError(
        f"the method {self.name!r}: who acts on models asks them, nobody else"
      )
    if self.weights_are == "factors" and "scale" not in self.uses:
      raise InputError(f"the method {self.name!r} has factors but no scale")
    if self.prepare and not {"seed", "base"} <= {*self.uses}:
      raise InputError(f"the method {self.name!r} draws without seed or base")

  @property
  def uses(self) -> tuple[str, ...]:
    """Names of its knobs."""
    return tuple(field.name for field in dataclasses.fields(self.knobs))

  @property
  def base(self) -> bool:
    """It needs the checkpoint that all inputs came from."""
    return "base" in self.uses

  @property
  def data(self) -> bool:
    """It needs the search split, for losses, gradients or inputs of layers."""
    return self.acts in ("on losses", "on derivatives", "on models")

  @property
  def whole(self) -> bool:
    """It acts on whole tensors, not entry by entry."""
    return self.acts == "per tensor"

  @property
  def on_tensors(self) -> bool:
    """Its function is called with tensors."""
    return self.acts in ("elementwise", "per tensor")

  def usable(self, weights_K: Sequence[float], knobs: Any) -> Sequence[float]:
    """Weights as the function takes them.

    Raises:
      InputError: they are not usable.
    """
    if self.weights_are == "factors":
      return task_weights(weights_K, knobs.scale)
    return (shares if self.weights_are == "shares" else normalise)(weights_K)

  def equal_weights(self, count: int) -> list[float]:
    """Adds task vectors whole; gives each input of a mean its share."""
    return [1.0 if self.base else 1.0 / count] * count


METHODS: Registry[Method] = Registry(
  "config.method", "jaxmerge.merging.methods"
)


def merge_method(name: str, summary: str, **fields: Any) -> Callable[[F], F]:
  """Registers the function below as a method, with the fields of its record."""

  def register(function: F) -> F:
    METHODS.register(Method(name, summary, function, **fields))
    return function

  return register


def count_problems(method: Method, count: int) -> list[str]:
  """Says whether so many inputs are too few or too many."""
  if method.least <= count <= (method.most or count):
    return []
  wanted = f"{method.most}" if method.most else f"{method.least} or more"
  return [f"the method {method.name!r} takes {wanted} inputs, got {count}"]


def problems(
  method: Method, count: int, weights: Sequence[float], knobs: Any
) -> list[str]:
  """Says what is wrong with a merge before any file is opened.

  The weights are as typed: none or one an input, with layer groups for each.
  """
  found = count_problems(method, count)
  called = f"the method {method.name!r}"
  if weights and method.weights == "none":
    found.append(f"{called} takes no --weights; --config.method=weights does")
  takes = method.weights == "required" or (method.weights != "none" and weights)
  names = names_of(getattr(knobs, "layer_groups", ""))
  if takes and names:  # else the model says how many groups there are
    by_depth = getattr(knobs, "interpolate", False)
    found += weight_count_problems(
      count, names, len(weights), interpolate=by_depth
    )
  if method.base and not knobs.base:
    found.append(f"{called} needs config.base")
  return found + [
    f"{count} inputs but {len(values)} numbers in config.{name}"
    for name, values in _per_input(knobs).items()
    if len(values) != count
  ]


def _per_input(knobs: Any) -> dict[str, tuple[float, ...]]:
  """The knobs that say a number for each input."""
  values = {
    name: getattr(knobs, name)
    for name, kind in typing.get_type_hints(type(knobs)).items()
    if kind == PerInput
  }
  return {n: value for n, value in values.items() if isinstance(value, tuple)}


def knobs_of_inputs(knobs: Any, inputs: Sequence[int]) -> Any:
  """The knobs of a merge of these of the inputs alone, in this order."""
  chosen = {
    name: tuple(values[k] for k in inputs)
    for name, values in _per_input(knobs).items()
  }
  return dataclasses.replace(knobs, **chosen) if chosen else knobs


def of_input(value: Any, k: int) -> Any:
  """A knob's number for one of the inputs."""
  return value[k] if isinstance(value, tuple) else value


def weights_of_inputs(
  method: Method | None, count: int, weights: Sequence[float]
) -> Sequence[float]:
  """Weights as typed; one number t for a method of two inputs is 1 - t, t."""
  is_t = method is not None and method.most == count == 2 and len(weights) == 1
  return [1 - weights[0], weights[0]] if is_t else weights


def weight_problems(
  method: Method, count: int, weights: Sequence[float], knobs: Any
) -> list[str]:
  """Says what is wrong with the weights of a merge without `problems`."""
  # With groups those of one after the other.
  rows = [weights[i : i + count] for i in range(0, len(weights), count)]
  try:
    for row in rows or [method.equal_weights(count)]:
      usable = method.usable(row, knobs)
      if method.acts == "on weights":
        average_weights(method, usable, knobs)
  except InputError as error:
    return error.problems
  return []


def average_weights(
  method: Method, weights_K: Sequence[float], knobs: Any
) -> list[float]:
  """The weights of an average by a method that acts on weights.

  Raises:
    InputError: weights or knobs that are not usable.
  """
  found = list(method.function(weights_K, knobs))
  if len(found) != len(weights_K):
    raise InputError(
      f"the method {method.name!r} gives {len(found)} weights for "
      f"{len(weights_K)} inputs"
    )
  of_one = normalise(found)
  return found if abs(sum(found) - 1) < 1e-9 else list(of_one)


def table() -> str:
  """The table of docs/merge.md."""
  rows = ["| method | what it does | uses |", "|---|---|---|"]
  for name, method in METHODS.items():
    uses = [f"`{knob}`" for knob in method.uses]
    if method.weights != "none":
      uses.append("`--weights`")
    rows.append(f"| `{name}` | {method.summary} | {', '.join(uses)} |")
  return "\n".join(rows)
