"""Newton's method on a quadratic model of the merged loss in the weights.

The loss is nearly quadratic in the weights: its gradient and its Gauss-Newton
matrix at one merge tell where the best weights of all groups are. Trials are
moves, each from the best checked weights so far (trial 0: the last checkpoint):
first to the mean of the newest three, where both are measured; from there to
the optimum of the model (simplex.quadratic.choose); then, where a gradient
measured anew pays, on to the same optimum. A move that is no better is halved.

G groups of parameters, K checkpoints.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.asking import RecordingSampler
from jaxmerge.bayesopt.space import Space
from jaxmerge.bayesopt.trials import score_of, sign_of
from jaxmerge.config_fields import key
from jaxmerge.evaluation.derivative_price import (
  curvature_sequences,
  derivative_passes,
)
from jaxmerge.evaluation.measurements import MEASURED
from jaxmerge.evaluation.search_method import (
  CURVATURE,
  DOCUMENT_GRADIENTS,
  SEARCH_METHODS,
  Expense,
  Findings,
  SearchMethod,
  Task,
  Tried,
)
from jaxmerge.evaluation.weight_quadratic import WeightQuadratic
from jaxmerge.merging import weight_rules

_HALVINGS = 2
# Of the loss's own, at least, in the directions of a step: the curvature is a
# Gauss-Newton matrix, and that of a few sequences (docs/results/solve.md).
_CURVATURE_ERROR = 0.1
# Of a loss: less is the rounding of sums in float32.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Knobs:
  max_steps: int = key(
    2, "at most so many steps to the optimum of a model", at_least=1
  )
  tolerance: float = key(
    0.02,
    "no step for less than this part of what the noise of the search split "
    "costs, for each forward pass that it takes",
    at_least=0,
  )


class _State(NamedTuple):
  """All that the trials so far have settled.

  Attributes:
    base: the best checked trial, from which the next move goes.
    moves: accepted so far; the first goes to a mean, the others are steps.
    failed: the last try of a move that is not accepted yet.
    tries: of that move.
    is_done: no further move is to be tried.
  """

  base: FrozenTrial
  moves: int = 0
  failed: FrozenTrial | None = None
  tries: int = 0
  is_done: bool = False

  @property
  def most_tries(self) -> int:
    """A step and its halves; the first move ends at the last checkpoint."""
    return _HALVINGS + 1 + (self.moves == 0)


def _is_accepted(
  found: Findings, value: float | None, base: FrozenTrial
) -> bool:
  """Says whether a move is no worse than where it came from."""
  before = score_of(base)
  assert before is not None, "the last checkpoint has a finite loss"
  if value is None:
    return False
  rise = -sign_of(found.direction) * (value - before)
  return rise <= _ROUNDING * max(1.0, abs(before))


def _state(found: Findings) -> _State:
  """Goes through the trials, each of which follows from those before it."""
  first, *others = found.trials
  state = _State(first)
  for trial in others:
    if state.is_done:
      break
    is_whole = trial.state == TrialState.COMPLETE
    value = score_of(trial) if is_whole else None
    if _is_accepted(found, value, state.base):
      # Whether there is to be another step was decided with its score.
      is_done = MEASURED not in trial.user_attrs
      state = _State(trial, state.moves + 1, is_done=is_done)
    else:
      tries = state.tries + 1
      is_done = tries == state.most_tries
      state = state._replace(failed=trial, tries=tries, is_done=is_done)
  return state


def _has_converged(found: Findings, knobs: Knobs) -> bool:
  state = _state(found)
  if state.is_done or not state.moves or state.tries:
    return state.is_done
  choice, excess = WeightQuadratic.at(found, state.base).solved()
  return not _is_worth(-choice.change, 1, excess, knobs)


def _is_worth(gain: float, passes: float, excess: float, knobs: Knobs) -> bool:
  """Says whether a gain pays for the forward passes that it takes."""
  return gain > passes * knobs.tolerance * excess


def _measures_at(found: Findings, tried: Tried, knobs: Knobs) -> Sequence[str]:
  """The first accepted move tells everything, steps where it pays.

  A curvature that is off by a part r leaves r^2 of the change c that the model
  has told for a step by a gradient measured anew: a Newton step ends where the
  true gradient is r H d, and (r H d)' H^-1 (r H d) / 2 = r^2 |c|. Along the
  step itself the error of c tells r.
  """
  if not found.trials:
    return ()
  state = _state(found)
  if not _is_accepted(found, tried.value, state.base):
    return ()
  if not state.moves:
    return DOCUMENT_GRADIENTS, CURVATURE
  if state.moves >= knobs.max_steps:
    return ()
  model = WeightQuadratic.at(found, state.base)
  change = model.here.change(np.array(found.domain.weights(tried.params)))
  before = score_of(state.base)
  assert before is not None
  error, told = tried.value - before - change, abs(change) or _ROUNDING
  further = max(error**2 / told, _CURVATURE_ERROR**2 * told)
  passes = tried.gradient_passes + 1
  is_worth = _is_worth(further, passes, model.solved().excess, knobs)
  return (DOCUMENT_GRADIENTS,) if is_worth else ()


class _Sampler(RecordingSampler):
  """Asks the next move of a search."""

  def __init__(self, found: Findings):
    super().__init__(found.space, num_startup=1, seed=0)
    self._found = found

  def ask(
    self, study: Study, trial: FrozenTrial, space: Space
  ) -> dict[str, Any]:
    del space
    trials = study.get_trials(deepcopy=False)
    ended = [t for t in trials[: trial.number] if t.state.is_finished()]
    found = self._found._replace(trials=ended)
    state, domain = _state(found), found.domain
    if state.tries >= _HALVINGS + 1 or state.is_done:
      # No mean is as good as the last checkpoint: its own derivatives, then.
      return _record("base", state.base.params)
    if state.failed is not None:
      return _record("half", _middle(found, state.base, state.failed))
    if not state.moves:
      [(_, mean_K)] = weight_rules.starts(("lawa",), len(domain.steps))
      rows = [domain.moved_within(mean_K)] * len(domain.groups.names_G)
      return _record("lawa", domain.params(rows))
    choice, excess = WeightQuadratic.at(found, state.base).solved()
    told = choice._asdict() | {"excess": excess}
    weights_GxK = 1 * told.pop("weights_GxK")
    # A solver's rows sum to one up to its tolerance.
    largest_G = np.arange(len(weights_GxK)), weights_GxK.argmax(axis=1)
    weights_GxK[largest_G] += 1 - weights_GxK.sum(axis=1)
    return _record("step", domain.params(weights_GxK.tolist()), told)


def _record(asked_by: str, params: Any, told: Any = None) -> dict[str, Any]:
  step = {"step": told} if told else {}
  return {"asked_by": asked_by, "params": dict(params), **step}


def _middle(
  found: Findings, one: FrozenTrial, other: FrozenTrial
) -> dict[str, float]:
  coordinates = found.space.coordinates
  middle_D = (coordinates(one.params) + coordinates(other.params)) / 2
  return found.space.params(middle_D)


def _expense(task: Task, knobs: Knobs) -> Expense:
  """As if one step were taken, and accepted at once."""
  directions = task.groups * (task.checkpoints - 1)
  of = curvature_sequences(directions, task.sequences)
  slopes, bends, again = derivative_passes(
    directions, task.sequences, on_devices=task.on_devices
  )
  steps = min(knobs.max_steps, max(task.num_trials - 2, 0))
  passes = 2 + slopes + bends + min(steps, 1)
  most = passes + max(steps - 1, 0) * (again + 1)
  return Expense(
    passes,
    f"trial 1: 1 forward pass + {slopes} (gradients) + {bends:.1f} (curvature "
    f"of {of} of {task.sequences} sequences, {directions} directions); a step: "
    f"1, and {again:.0f} where another follows; about {passes:.0f} until it "
    "has converged" + (f", {most:.0f} with all steps" if steps > 1 else ""),
  )


SEARCH_METHODS.register(
  SearchMethod(
    "newton",
    "Newton's method",
    "the optimum of a quadratic from the loss's gradient and Gauss-Newton "
    "matrix in the weights",
    Knobs,
    sampler=lambda found, seed, knobs: _Sampler(found),
    measures=lambda knobs: (DOCUMENT_GRADIENTS, CURVATURE),
    measures_at=_measures_at,
    is_sequential=True,
    expense=_expense,
    has_converged=_has_converged,
  )
)
