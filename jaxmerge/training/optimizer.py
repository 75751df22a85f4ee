"""Optimisers and learning-rate schedules: their records, a run's choice."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmerge.config_fields import key, knobs_of
from jaxmerge.registry import Registry


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """Describes an optimiser to a run.

  Attributes:
    name: in a config.
    summary: one line, with the reference.
    knobs: a frozen dataclass of its keys in the `optimizer` section.
    build: from the learning rate's schedule and the knobs.
  """

  name: str
  summary: str
  knobs: type
  build: Callable[[optax.Schedule, Any], optax.GradientTransformation]


def _no_problems(num_steps: int, knobs: Any) -> list[str]:
  return []


def _no_phases(num_steps: int, knobs: Any) -> Mapping[str, tuple[int, int]]:
  return {}


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Describes a learning-rate schedule to a run, as an Optimizer.

  Attributes:
    build: from the highest rate, the number of steps and the knobs.
    depends_on_length: rates of the first steps are others where a run has
      another number of steps, so that it cannot go on to another number.
    problems: says why the knobs do not fit the number of steps.
    phases: the first and the last step of its parts by name, such as `stable`;
      one whose last step is before its first there is not.
  """

  name: str
  summary: str
  knobs: type
  build: Callable[[float, int, Any], optax.Schedule]
  depends_on_length: bool = True
  problems: Callable[[int, Any], list[str]] = _no_problems
  phases: Callable[[int, Any], Mapping[str, tuple[int, int]]] = _no_phases


OPTIMIZERS: Registry[Optimizer] = Registry(
  "config.optimizer.name", "jaxmerge.training.optimizers"
)
SCHEDULES: Registry[Schedule] = Registry(
  "config.optimizer.schedule", "jaxmerge.training.schedules"
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The `optimizer` section of a run's config."""

  name: str = key("adamw", "the optimiser", choices=OPTIMIZERS)
  schedule: str = key(
    "warmup_constant", "of the learning rate", choices=SCHEDULES
  )
  learning_rate: float = key(1e-3, "the highest learning rate", above=0)
  clip_norm: float = key(
    1.0, "gradients of a larger global norm are scaled down to it", above=0
  )
  knobs: Any = knobs_of("name", OPTIMIZERS)
  schedule_knobs: Any = knobs_of("schedule", SCHEDULES)

  def problems_of_length(self, num_steps: int) -> list[str]:
    """Says why a run of so many steps cannot have this schedule."""
    if self.schedule not in SCHEDULES:
      return []
    return SCHEDULES[self.schedule].problems(num_steps, self.schedule_knobs)

  def phases(self, num_steps: int) -> dict[str, tuple[int, int]]:
    """The first and the last step of each phase of a run, by its name."""
    phases = SCHEDULES[self.schedule].phases(num_steps, self.schedule_knobs)
    return {
      n: (first, last) for n, (first, last) in phases.items() if first <= last
    }


def build(
  config: OptimizerConfig, num_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimiser that a config asks for, and its learning-rate schedule.

  Gradients are clipped by their global norm before it sees them.
  """
  schedule = SCHEDULES[config.schedule].build(
    config.learning_rate, num_steps, config.schedule_knobs
  )
  optimizer = OPTIMIZERS[config.name].build(schedule, config.knobs)
  clip = optax.clip_by_global_norm(config.clip_norm)
  return optax.chain(clip, optimizer), schedule


def at_step(opt_state: Any, step: jax.typing.ArrayLike) -> Any:
  """An optimiser's state whose schedules stand behind so many steps.

  Where a schedule stands is all that its own state counts; moments count the
  gradients in them, for their bias.
  """

  def is_position(state: Any) -> bool:
    return getattr(state, "_fields", ()) == ("count",)

  return jax.tree.map(
    lambda state: (
      state._replace(count=jnp.full_like(state.count, step))
      if is_position(state)
      else state
    ),
    opt_state,
    is_leaf=is_position,
  )
