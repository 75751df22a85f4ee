"""GP-Hedge: a Gaussian process under a portfolio of acquisitions."""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxmerge.bayesopt.gp.acquisition import ACQUISITIONS
from jaxmerge.bayesopt.gp.surrogate import expected_seconds
from jaxmerge.bayesopt.sampler import GPHedgeSampler
from jaxmerge.bayesopt.trials import GRADIENT, recommended
from jaxmerge.config_fields import key
from jaxmerge.evaluation.evaluator import JVP_PASSES, VJP_PASSES
from jaxmerge.evaluation.search_method import (
  SEARCH_METHODS,
  Expense,
  Findings,
  SearchMethod,
  Task,
)
from jaxmerge.merging import weight_rules


@dataclasses.dataclass(frozen=True)
class Knobs:
  acquisitions: tuple[str, ...] = key(
    ("ei", "pi", "ucb"),
    "what GP-Hedge chooses from",
    choices=ACQUISITIONS,
  )
  initial_weights: tuple[str, ...] = key(
    (),
    "first trials, by name (docs/search.md); (): the default order",
    choices=weight_rules.STARTS,
  )
  use_gradients: bool = key(
    False,
    "tell the process the loss's derivative by the weights: fewer trials, each "
    "of three (a pair) or six forward passes",
  )

  def problems(self, prefix: str) -> list[str]:
    """Lists an empty choice."""
    if self.acquisitions:
      return []
    return [f"{prefix}acquisitions must not be empty"]


def _sampler(found: Findings, seed: int, knobs: Knobs) -> GPHedgeSampler:
  return GPHedgeSampler(
    seed=seed,
    acquisitions=knobs.acquisitions,
    simplex=found.space.groups_GxK,
    use_gradients=knobs.use_gradients,
    starts=found.space.starts_NxK,
    negative=found.space.negative,
  )


def _starts(count: int, knobs: Knobs) -> Sequence[str]:
  return knobs.initial_weights or weight_rules.default_starts(
    count, knobs.use_gradients
  )


def _expense(task: Task, knobs: Knobs) -> Expense:
  if not knobs.use_gradients:
    return Expense(task.num_trials)
  is_one_slope = (task.checkpoints, task.groups) == (2, 1)
  passes = JVP_PASSES if is_one_slope else VJP_PASSES
  return Expense(passes * task.num_trials, f"of {passes} forward passes each")


def _recommend(found: Findings, knobs: Knobs) -> Mapping[str, float]:
  """Algorithm 1 of arXiv 2403.19390 returns the best observation.

  With noise that is the luckiest one, and the posterior mean decides instead.
  """
  return recommended(
    found.trials, found.space, found.direction, knobs.use_gradients
  ).params


SEARCH_METHODS.register(
  SearchMethod(
    "gp_hedge",
    "GP-Hedge",
    "a Gaussian process under a portfolio of acquisitions (Hoffman, Brochu and "
    "de Freitas, UAI 2011)",
    Knobs,
    _sampler,
    starts=_starts,
    measures=lambda knobs: (GRADIENT,) if knobs.use_gradients else (),
    asking_seconds=lambda dimension, groups, num_trials, knobs: (
      expected_seconds(dimension, groups, num_trials, knobs.use_gradients)
    ),
    expense=_expense,
    recommend=_recommend,
    has_posterior=True,
  )
)
