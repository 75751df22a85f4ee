"""The objective of a search: weights in, held-out loss of the merge out.

K checkpoints.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt import simplex
from jaxmerge.bayesopt.study import Observation
from jaxmerge.errors import InputError
from jaxmerge.evaluation.heldout_loss import HeldOutLoss, Score
from jaxmerge.evaluation.paired import Estimate, difference
from jaxmerge.merging.average import weighted_average

WEIGHTS = "weights"


class MergedLoss:
  """Merges on the devices and scores, without touching the disk.

  Args:
    trees: K trees of parameters on the mesh, oldest first.
    heldout: what to score on.

  Raises:
    InputError: the last tree has no finite loss to compare with.
  """

  def __init__(self, trees: Sequence[Any], heldout: HeldOutLoss):
    self._trees = trees
    self._heldout = heldout
    self.last = heldout(trees[-1])
    if not math.isfinite(self.last.nats_per_token):
      raise InputError(
        "the last checkpoint to merge has a loss that is not a finite number: "
        "the run has diverged; choose earlier steps"
      )

  def score(self, weights_K: Sequence[float]) -> Score:
    return self._heldout(weighted_average(self._trees, weights_K))

  def paired(self, score: Score) -> Estimate:
    """Difference to the last checkpoint alone, with its standard error."""
    return difference(score, self.last)


def weight_names(count: int) -> tuple[str, ...]:
  return tuple(f"w_{k}" for k in range(count))


def make_objective(
  merged: MergedLoss, alpha: float, steps: Sequence[int]
) -> Callable[[int, dict[str, float]], Observation]:
  """What a study calls: a point of the simplex to the merge's search loss.

  The standard error told is that of the paired difference to the last
  checkpoint: most of the absolute one is shared by all trials.
  """

  def objective(number: int, params: dict[str, float]) -> Observation:
    unit_K = [params[name] for name in weight_names(len(steps))]
    weights_K = simplex.weights_from_unit(unit_K, alpha)
    score = merged.score(weights_K)
    paired = merged.paired(score)
    return Observation(
      value=score.nats_per_token,
      stderr=paired.stderr,
      attrs={
        WEIGHTS: {str(step): w for step, w in zip(steps, weights_K)},
        "delta_vs_last": paired.mean,
      },
    )

  return objective


def weights_of(trial: FrozenTrial) -> dict[int, float]:
  """The checkpoint weights of a finished trial, by step."""
  return {int(s): float(w) for s, w in trial.user_attrs[WEIGHTS].items()}


def finished(trials: Sequence[FrozenTrial], budget: int) -> list[FrozenTrial]:
  """The trials within the budget that have a loss, by number."""
  return [
    t for t in trials if t.state == TrialState.COMPLETE and t.number < budget
  ]


def best_trial(trials: Sequence[FrozenTrial]) -> FrozenTrial:
  """The finished trial of lowest loss; of equals the nearest to the last.

  Algorithm 1 of arXiv 2403.19390 returns the best observation, so a merge is
  never worse than the last checkpoint on the search split.
  """

  def key(trial: FrozenTrial) -> tuple[float, float]:
    weights = weights_of(trial)
    assert trial.value is not None
    return trial.value, -weights[max(weights)]

  return min(trials, key=key)
