"""Chooses the search method where a config says "auto".

K checkpoints.
"""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from jaxmerge.bayesopt.trials import GRADIENT
from jaxmerge.evaluation.score import Direction
from jaxmerge.evaluation.search_method import (
  CURVATURE,
  DEFAULT_METHOD,
  DOCUMENT_GRADIENTS,
  SEARCH_METHODS,
  SearchMethod,
)
from jaxmerge.evaluation.search_methods import gp_hedge, newton

AUTO = "auto"
_NEWTON = "newton"
# From so many on, one vector of weights is as much as some of groups.
_MANY = 6


@dataclasses.dataclass(frozen=True)
class Knobs(gp_hedge.Knobs, newton.Knobs):
  """Those of both methods; one that is set chooses its method."""


class Auto(NamedTuple):
  """Stands among the records of methods for the choice of one."""

  name: str = AUTO
  summary: str = "newton for groups or six checkpoints, else gp_hedge"
  knobs: type = Knobs


SOLVERS: Mapping[str, Any] = collections.ChainMap(
  {AUTO: Auto()},
  SEARCH_METHODS,  # type: ignore[arg-type]
)
"""What `config.solver` may say."""


class Scored(Protocol):
  """As much of an evaluator's record as a method's choice depends on."""

  @property
  def name(self) -> str:
    """In words: scores of it."""

  @property
  def is_differentiable(self) -> bool:
    """Says whether it tells slopes."""

  @property
  def has_curvature(self) -> bool:
    """Says whether it tells what newton needs."""

  @property
  def direction(self) -> Direction:
    """The way in which its scores get better."""


class Solver(NamedTuple):
  """A method with its knobs; `why` it was chosen, "" where it was named."""

  method: SearchMethod
  knobs: Any
  why: str = ""


def _with_knobs(name: str, knobs: Any, why: str) -> Solver:
  method = SEARCH_METHODS[name]
  names = [field.name for field in dataclasses.fields(method.knobs)]
  own = method.knobs(**{name: getattr(knobs, name) for name in names})
  return Solver(method, own, why)


def _set_knobs(method: type, knobs: Any) -> list[str]:
  return [
    field.name
    for field in dataclasses.fields(method)
    if getattr(knobs, field.name) != field.default
  ]


def choose(
  solver: str,
  knobs: Any,
  evaluator: Scored,
  *,
  has_groups: bool,
  count: int,
) -> Solver:
  """The method of a config, by its knobs or else by what is searched.

  Args:
    solver, knobs: of the config.
    evaluator: of the scores.
    has_groups: parameters have weights of their own by group.
    count: K.
  """
  if solver != AUTO:
    return Solver(SEARCH_METHODS[solver], knobs)
  if found := _set_knobs(gp_hedge.Knobs, knobs):
    why = f"config.{found[0]} is its own"
    return _with_knobs(DEFAULT_METHOD, knobs, why)
  if found := _set_knobs(newton.Knobs, knobs):
    return _with_knobs(_NEWTON, knobs, f"config.{found[0]} is its own")
  if not evaluator.has_curvature:
    why = f"scores of {evaluator.name} have no curvature"
    return _with_knobs(DEFAULT_METHOD, knobs, why)
  if has_groups:
    why = "a group of parameters has weights of its own"
    return _with_knobs(_NEWTON, knobs, why)
  if count >= _MANY:
    return _with_knobs(
      _NEWTON, knobs, f"{count} checkpoints are {_MANY} or more"
    )
  why = f"{count} checkpoints are fewer than {_MANY}, without groups"
  return _with_knobs(DEFAULT_METHOD, knobs, why)


def other(name: str, knobs: Any) -> Solver | None:
  """The other method that `auto` knows, for a study that was made by it.

  None where a knob says which one it is to be.
  """
  if _set_knobs(Knobs, knobs):
    return None
  name = DEFAULT_METHOD if name == _NEWTON else _NEWTON
  return _with_knobs(name, knobs, "the study of this name was made by it")


def problems(
  prefix: str, solver: str, knobs: Any, evaluator: Scored
) -> list[str]:
  """Says why a solver cannot be had with these knobs and this evaluator."""
  if solver not in SOLVERS:
    return []  # told as such
  if evaluator.has_curvature and evaluator.direction != "minimize":
    return [
      f"{prefix}evaluator {evaluator.name!r}: a curvature is of a loss, and "
      "its scores are to be maximised"
    ]
  if solver == AUTO:
    both = [_set_knobs(each.Knobs, knobs) for each in (gp_hedge, newton)]
    if all(both):
      return [
        f"{prefix}{both[0][0]} is of the solver {DEFAULT_METHOD!r} and "
        f"{prefix}{both[1][0]} of {_NEWTON!r}: leave one of them out"
      ]
  chosen = choose(solver, knobs, evaluator, has_groups=False, count=2)
  wanted = chosen.method.measures(chosen.knobs)
  has_knob = hasattr(chosen.knobs, "use_gradients")
  if GRADIENT in wanted and not evaluator.is_differentiable:
    return [
      f"{prefix}{'use_gradients' if has_knob else 'solver'}: the evaluator "
      f"{evaluator.name!r} has no derivatives"
    ]
  if {DOCUMENT_GRADIENTS, CURVATURE} & {
    *wanted
  } and not evaluator.has_curvature:
    return [
      f"{prefix}solver {chosen.method.name!r}: the evaluator "
      f"{evaluator.name!r} has no curvature; 'gp_hedge' needs none"
    ]
  return []
