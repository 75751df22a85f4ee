"""Regularised nonlinear acceleration: weights from the inputs' differences.

K inputs, oldest first; P = K - 1 differences.
"""

import dataclasses

import numpy as np

from jaxmerge.config_fields import key
from jaxmerge.errors import InputError
from jaxmerge.merging.method import merge_method
from jaxmerge.merging.weight_checks import normalise


@dataclasses.dataclass(frozen=True)
class RnaKnobs:
  # As the authors' module for networks has it.
  regularization: float = key(
    1e-5, "the larger, the nearer to the plain mean", above=0
  )


@merge_method(
  "rna",
  "regularised nonlinear acceleration: R = differences of successive inputs,"
  " (R'R / |R'R| + `regularization` I) z = 1, weights z / sum z on all inputs"
  " but the oldest (arXiv 1606.04133)",
  acts="on grams",
  knobs=RnaKnobs,
  ordered=True,
  least=3,
)
def rna(gram_PxP: np.ndarray, knobs: RnaKnobs) -> list[float]:
  """The weights w of sum w = 1 with the least |R w|^2 + lambda |R'R| |w|^2.

  Of x_{k+1} = A x_k + b with more inputs than dimensions, R w = 0 is had, and
  the merge is the fixed point. The weight w_p goes to the later end of the
  difference r_p, as in the authors' code for networks (windows7lover/
  RegularizedNonlinearAcceleration, Python); their first, in Matlab, gives it
  to the earlier end, a step of the run behind.

  Raises:
    InputError: the weights are so large that their merge loses its digits.
  """
  size = np.linalg.norm(gram_PxP, 2)
  # Equal inputs are their own mean.
  scaled_PxP = gram_PxP / size if size > 0 else gram_PxP
  ridge_PxP = knobs.regularization * np.eye(len(gram_PxP))
  z_P = np.linalg.solve(scaled_PxP + ridge_PxP, np.ones(len(gram_PxP)))
  try:
    return [0.0, *normalise(z_P.tolist())]
  except InputError as error:
    raise InputError(
      f"{problem}; a larger config.regularization makes them smaller"
      for problem in error.problems
    ) from error
