"""Derivatives by the weights that a trial has measured, kept in its study.

N items, C clusters of them (documents), G groups, K checkpoints, D = G K.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from etils import epath
from optuna.trial import FrozenTrial

from jaxmerge.errors import InputError
from jaxmerge.evaluation.merged_loss import MergedLoss
from jaxmerge.evaluation.score import Score
from jaxmerge.evaluation.search_method import (
  CURVATURE,
  DOCUMENT_GRADIENTS,
  Tried,
)
from jaxmerge.files import make_directory, write_bytes

# A user attribute of the trial.
MEASURED = "measured"
_TOKENS = "measured_tokens"
# More than this, of gradients or of the matrix, are too many for a study.
_MOST_NUMBERS = 200 * 200


class Measurement(NamedTuple):
  """Derivatives at the weights of a trial.

  Attributes:
    gradients_CxGxK: d summed loss of a document / d weights.
    counts_C: the documents' tokens.
    curvature_DxD: of the mean loss; None where it was not measured.
  """

  gradients_CxGxK: np.ndarray
  counts_C: np.ndarray
  curvature_DxD: np.ndarray | None


def by_document(
  score: Score, gradients_NxGxK: np.ndarray, curvature_DxD: np.ndarray | None
) -> Measurement:
  """Sums derivatives over the items of each document.

  Raises:
    InputError: one is not finite.
  """
  clusters_C, index_N = np.unique(score.clusters_N, return_inverse=True)
  shape = (len(clusters_C), *gradients_NxGxK.shape[1:])
  gradients_CxGxK = np.zeros(shape, np.float64)
  np.add.at(gradients_CxGxK, index_N, gradients_NxGxK)
  counts_C = np.bincount(index_N, weights=score.weights_N)
  found = Measurement(gradients_CxGxK, counts_C, curvature_DxD)
  if not all(np.isfinite(part).all() for part in found if part is not None):
    raise InputError(
      "a derivative of the merged loss by the weights is not finite"
    )
  return found


def kept(
  measurement: Measurement, folder: epath.Path | None, number: int
) -> dict[str, Any]:
  """JSON of a measurement to keep with a trial; large ones go into a file.

  The file is named by the trial and by what it holds: of two searchers at one
  trial neither overwrites what the other's trial says.

  Args:
    folder: of files; None: everything goes into the JSON.
    number: of the trial.
  """
  arrays = {
    name.partition("_")[0]: np.asarray(part, np.float64)
    for name, part in measurement._asdict().items()
    if part is not None
  }
  largest = max(part.size for part in arrays.values())
  if folder is None or largest <= _MOST_NUMBERS:
    return {name: part.tolist() for name, part in arrays.items()}
  content = safetensors.numpy.save(arrays)
  digest = hashlib.sha256(content).hexdigest()
  name = f"{number}-{digest[:12]}.safetensors"
  write_bytes(make_directory(folder) / name, content)
  return {"file": name, "sha256": digest}


def read_measurement(
  trial: FrozenTrial, folder: epath.Path | None
) -> Measurement | None:
  """The measurement of a trial; None where it has made none.

  Raises:
    InputError: its file is missing or damaged.
  """
  said = trial.user_attrs.get(MEASURED)
  if said is None:
    return None
  if "file" not in said:
    arrays = {name: np.array(value) for name, value in said.items()}
  else:
    assert folder is not None
    path = str(folder / said["file"])
    arrays = _read(path, said["sha256"], trial.number)
  curvature_DxD = arrays.get("curvature")
  return Measurement(arrays["gradients"], arrays["counts"], curvature_DxD)


@functools.lru_cache(maxsize=4)
def _read(path: str, digest: str, number: int) -> dict[str, np.ndarray]:
  """Arrays of a file; searchers ask for them again and again."""
  where = f"{path}, which holds what trial {number} of the study has measured,"
  after = "restore it, or search under another config.study_name"
  try:
    content = epath.Path(path).read_bytes()
  except FileNotFoundError as error:
    raise InputError(
      f"{where} is missing; {after} (searchers that share a study of so many "
      "groups need one workdir)"
    ) from error
  if hashlib.sha256(content).hexdigest() != digest:
    raise InputError(f"{where} is damaged; {after}")
  found: dict[str, np.ndarray] = safetensors.numpy.load(content)
  return found


class Measurer(NamedTuple):
  """Measures what a search method wants to know of a trial.

  Attributes:
    wanted: says what to measure of a trial.
    known: the user attributes of a trial as the storage has them.
    weights: of a trial's parameters (GxK).
    folder: as for `kept`.
  """

  wanted: Callable[[Tried], Sequence[str]]
  known: Callable[[int], Mapping[str, Any]]
  weights: Callable[[Mapping[str, float]], list[list[float]]]
  folder: epath.Path | None

  def attrs(
    self,
    merged: MergedLoss,
    number: int,
    params: Mapping[str, float],
    score: Score,
  ) -> dict[str, Any]:
    """User attributes of a trial: its measurement, or nothing.

    One that a dead searcher has stored without ending its trial is not measured
    again; it costs what it did.
    """
    price = merged.derivative_passes.again
    wanted = self.wanted(Tried(number, params, score.mean, price))
    if DOCUMENT_GRADIENTS not in wanted:
      return {}
    before = self.known(number)
    if MEASURED in before:
      merged.tokens += before[_TOKENS]
      return {name: before[name] for name in (_TOKENS, MEASURED)}
    spent = merged.tokens
    measured = merged.measured(
      self.weights(params), curvature=CURVATURE in wanted, score=score
    )
    measurement = by_document(*measured)
    # In this order: where there is a measurement, its price is known.
    return {
      _TOKENS: merged.tokens - spent,
      MEASURED: kept(measurement, self.folder, number),
    }
