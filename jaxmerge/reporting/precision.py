"""The precision of a search's weights: what a finite split leaves open.

From derivatives of each document's loss and the curvature, at the recommended
weights. C documents, G groups of parameters, K checkpoints, D = G K.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from jaxmerge.bayesopt.trials import ASKED
from jaxmerge.errors import InputError
from jaxmerge.evaluation.derivative_price import derivative_passes
from jaxmerge.evaluation.domain import Domain
from jaxmerge.evaluation.losses import Losses
from jaxmerge.evaluation.measurements import (
  Measurement,
  by_document,
  read_measurement,
)
from jaxmerge.evaluation.search_method import Findings
from jaxmerge.evaluation.search_plan import Prepared
from jaxmerge.evaluation.weight_search import Choice, WeightSearch
from jaxmerge.merging.resident import ON_DEVICES
from jaxmerge.progress import Progress
from jaxmerge.reporting.advice import Estimate, described
from jaxmerge.reporting.results import Precision
from jaxmerge.simplex import quadratic
from jaxmerge.simplex.quadratic_model import Quadratic, Region

# In the study's attributes: what has been measured once.
_KEPT = "precision"
_NO_ROOM = "derivatives need more memory than there is beside the checkpoints"


def told(
  study: Study,
  ready: Prepared,
  losses: Losses,
  found: Findings,
  best: Choice,
  progress: Progress,
) -> Precision | None:
  """The precision of a search's weights, as its report tells it.

  Trials that have measured derivatives tell it; of any other search they are
  measured once, at the recommended weights, and the numbers kept in the study.
  What stands against that is told instead.

  Returns:
    None of scores that have no derivatives by the weights.
  """
  if not ready.evaluator.has_curvature:
    return None
  weights_GxK = ready.search.domain.weights(best.params)
  search = ready.search
  way = _way(found, best, is_solved=search.use_curvature)
  try:
    kept = study.user_attrs.get(_KEPT)
    measured = _of_trials(found)
    if measured is not None:
      there_GxK, measurement = measured
      model = moved(measurement, there_GxK, weights_GxK)
      estimate = estimated(model, found.domain, way)
    elif kept is not None and kept["weights_GxK"] == weights_GxK:
      estimate = Estimate(**kept)
    else:
      _check_possible(ready, losses)
      progress.note("precision", "measuring derivatives by the weights")
      measurement, passes = _measured(losses, weights_GxK)
      model = moved(measurement, weights_GxK, weights_GxK)
      estimate = estimated(model, found.domain, way, passes)
      study.set_user_attr(_KEPT, estimate._asdict())
  except InputError as error:
    return Precision(f"not known: {error.problems[0]}")
  return described(
    estimate,
    found.domain,
    len(losses.merged.last.values_N),
    is_whole=len(losses.merged.last.values_N) < ready.search_sequences,
    finder=_finder(search, found),
  )


def _finder(search: WeightSearch, found: Findings) -> str:
  """Names a finder of better weights of the same split; "": there is none."""
  if search.method.has_converged(found, search.knobs):
    return ""
  if search.use_curvature:
    return "more trials"
  return "more trials, or config.solver='newton',"


def planned(ready: Prepared) -> str:
  """Says before a search what it takes to tell how sure its weights are."""
  search = ready.search
  if not ready.evaluator.has_curvature:
    return f"not told: scores of {ready.evaluator.name} have no derivatives"
  if search.use_curvature:
    return "from what the trials measure"
  if not ready.has_room:
    return f"not told: {_NO_ROOM}"
  ways = len(search.domain.groups.names_G) * (len(search.domain.steps) - 1)
  slopes, bends, _ = derivative_passes(
    ways,
    ready.search_sequences,
    on_devices=ready.place.where == ON_DEVICES,
  )
  passes = 1 + slopes + bends
  return (
    f"derivatives at the chosen weights, about {passes:.0f} forward passes of "
    "the search split, once"
  )


def _check_possible(ready: Prepared, losses: Losses) -> None:
  if not ready.has_room:
    raise InputError(_NO_ROOM)
  if wrong := losses.derivative_problems():
    raise InputError(wrong)


def _measured(
  losses: Losses, weights_GxK: Sequence[Sequence[float]]
) -> tuple[Measurement, float]:
  """The derivatives at these weights, and the forward passes they took."""
  merged = losses.merged
  before = merged.tokens
  measurement = by_document(*merged.measured(weights_GxK, curvature=True))
  return measurement, (merged.tokens - before) / merged.last.tokens


def _of_trials(
  found: Findings,
) -> tuple[list[list[float]], Measurement] | None:
  """The newest gradients that trials have measured, where, and the curvature.

  None where one of both is missing.
  """
  newest, curvature_DxD = None, None
  for trial in found.trials:
    measured = read_measurement(trial, found.folder)
    if measured is None:
      continue
    newest = found.domain.weights(trial.params), measured
    if measured.curvature_DxD is not None:
      curvature_DxD = measured.curvature_DxD
  if newest is None or curvature_DxD is None:
    return None
  where_GxK, measured = newest
  return where_GxK, measured._replace(curvature_DxD=curvature_DxD)


def _way(
  found: Findings, best: Choice, *, is_solved: bool
) -> tuple[Sequence[int], float] | None:
  """The partition and the ridge by which the weights were found.

  Those of the last step up to the chosen trial. Of weights that a method of
  steps has kept without one None, and of any other method each group is on its
  own.
  """
  last = None
  for trial in found.trials:
    step = _step(trial)
    if step and (best.number is None or trial.number <= best.number):
      last = step
  if last is not None:
    return found.domain.partitions[last["partition"]], float(last["ridge"])
  if is_solved:
    return None
  return tuple(range(len(found.domain.groups.names_G))), 0.0


def _step(trial: FrozenTrial) -> Mapping[str, Any]:
  found: Mapping[str, Any] = trial.system_attrs.get(ASKED, {}).get("step", {})
  return found


def moved(
  measurement: Measurement,
  there_GxK: Sequence[Sequence[float]],
  weights_GxK: Sequence[Sequence[float]],
) -> Quadratic:
  """The quadratic model at other weights than where it was measured.

  g_c(w) = g_c + T_c H (w - there) for each document: the mean gradient moves by
  the model, what differs between documents stays.
  """
  curvature_DxD = measurement.curvature_DxD
  assert curvature_DxD is not None, "both are measured together"
  weights = np.array(weights_GxK, np.float64)
  d_D = (weights - np.array(there_GxK)).ravel()
  shift_GxK = (curvature_DxD @ d_D).reshape(weights.shape)
  return Quadratic(
    weights,
    measurement.gradients_CxGxK
    + measurement.counts_C[:, None, None] * shift_GxK,
    measurement.counts_C,
    curvature_DxD,
  )


def estimated(
  model: Quadratic,
  domain: Domain,
  way: tuple[Sequence[int], float] | None,
  passes: float = 0.0,
) -> Estimate:
  """The precision of the weights of a model, and what they leave to gain.

  Args:
    model: around the weights.
    domain: of the weights.
    way: the partition and the ridge by which they were found; None: those that
      a step from there would take.
    passes: that the measurement took.

  Raises:
    InputError: derivatives that are not finite, or of fewer than two documents.
  """
  region = Region(*domain.bounds.region(len(domain.steps)))
  choice = quadratic.choose(model, region, domain.partitions)
  partition, ridge = way or (domain.partitions[choice.partition], choice.ridge)
  found = quadratic.precision(model, region, partition, ridge)
  return Estimate(
    model.weights_GxK.tolist(),
    found.stderr_GxK.tolist(),
    found.excess,
    max(-choice.change, 0.0),
    passes,
  )
