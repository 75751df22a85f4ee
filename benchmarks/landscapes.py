"""Merge landscapes of real checkpoints, recorded by record_landscapes.py.

A landscape gives the loss of a merge at any weights, for each sequence of a
search split, so that a thousand searches cost no model evaluation.

K checkpoints, P weights, F polynomial terms, S sequences.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping

import numpy as np
import scipy.optimize

from jaxmerge.evaluation import statistics
from jaxmerge.evaluation.score import Score
from jaxmerge.model.loss import UNIT
from jaxmerge.simplex.points import candidates

PATH = pathlib.Path(__file__).parent / "landscapes.npz"


@dataclasses.dataclass(frozen=True)
class Spec:
  steps: tuple[int, ...]
  degree: int
  num_points: int


SETS = {
  "near pair": Spec((600, 700), 8, 90),
  "far pair": Spec((200, 700), 10, 90),
  "three": Spec((500, 600, 700), 7, 240),
  "six": Spec((400, 500, 600, 700, 800, 900), 5, 900),
}
# Pairs are recorded beyond the last checkpoint too.
_REACH = 0.5


def design(spec: Spec) -> np.ndarray:
  """Weights (PxK) to record, in an order in which any tail is spread out."""
  count = len(spec.steps)
  rng = np.random.default_rng(0)
  if count == 2:
    nodes = np.cos(np.pi * (np.arange(spec.num_points) + 0.5) / spec.num_points)
    lam = (1 + _REACH) * (nodes + 1) / 2
    return rng.permutation(np.stack([1 - lam, lam], axis=1))
  # Dense where the polynomial would swing: corners, edges and faces.
  points = [np.eye(count)]
  for alpha in (1.0, 0.4):
    points.append(rng.dirichlet(np.full(count, alpha), spec.num_points // 2))
  return np.concatenate(points)[: spec.num_points]


def features(weights_PxK: np.ndarray, degree: int) -> np.ndarray:
  """Products of Chebyshev polynomials of all weights but the last (PxF)."""
  free = 2 * np.atleast_2d(weights_PxK)[:, :-1] - 1
  one_PxDxN = np.polynomial.chebyshev.chebvander(free, degree)
  powers = [
    p
    for p in itertools.product(range(degree + 1), repeat=free.shape[1])
    if sum(p) <= degree
  ]
  columns = range(free.shape[1])
  return np.stack(
    [np.prod([one_PxDxN[:, d, p[d]] for d in columns], axis=0) for p in powers],
    axis=1,
  )


class Landscape:
  """The loss of a merge at any weights.

  Args:
    recorded: the arrays of landscapes.npz.
    name: one of SETS.
    num_sequences: how many of the recorded sequences to score, spread over
      all; None: all.
  """

  def __init__(
    self,
    recorded: Mapping[str, np.ndarray],
    name: str,
    num_sequences: int | None = None,
  ):
    recorded_S = recorded[f"{name}/targets"]
    used = slice(0, None, len(recorded_S) // (num_sequences or len(recorded_S)))
    self._degree = SETS[name].degree
    self.num_weights = len(SETS[name].steps)
    self._coefficients_FxS = recorded[f"{name}/coefficients"][:, used]
    self.targets_S = recorded_S[used]
    self.documents_S = recorded[f"{name}/documents"][used]

  def losses(self, weights_K: np.ndarray) -> np.ndarray:
    """Summed nats of each sequence."""
    return (features(weights_K, self._degree) @ self._coefficients_FxS)[0]

  def score(self, weights_K: np.ndarray) -> Score:
    losses_S = self.losses(weights_K)
    return Score(
      losses_S, self.targets_S, self.documents_S, UNIT, "minimize", tokens=0
    )

  def loss(self, weights_K: np.ndarray) -> float:
    """Nats/token of all sequences together."""
    return self.score(weights_K).mean

  def stderr(self, weights_K: np.ndarray) -> float:
    """Paired standard error of the difference to the last checkpoint."""
    last = np.eye(self.num_weights)[-1]
    return statistics.difference(self.score(weights_K), self.score(last)).stderr

  def slope_stderr(self, weights_K: np.ndarray) -> float:
    """Of a slope along a direction of length one, as the search verb has it."""
    last = np.eye(self.num_weights)[-1]
    distance = float(np.linalg.norm(weights_K - last))
    if distance > 0:
      return self.stderr(weights_K) / distance
    near = last + 1e-4 * (1 / self.num_weights - last)
    return self.stderr(near) / float(np.linalg.norm(near - last))

  def gradient(self, weights_K: np.ndarray) -> np.ndarray:
    """d loss / d weights along e_k - e_last for k < last (K-1 numbers)."""
    step = 1e-5
    edges = np.eye(self.num_weights)[:-1] - np.eye(self.num_weights)[-1]
    return np.array(
      [
        (self.loss(weights_K + step * e) - self.loss(weights_K - step * e))
        / (2 * step)
        for e in edges
      ]
    )

  def lowest(self) -> float:
    """The lowest loss on the simplex."""
    points = candidates(self.num_weights, 1 << 12, 0)
    points = np.concatenate([points, np.eye(self.num_weights)])
    totals = features(points, self._degree) @ self._coefficients_FxS.sum(1)
    starts = points[np.argsort(totals)[:5]]
    found = [
      scipy.optimize.minimize(
        self.loss,
        start,
        method="SLSQP",
        bounds=[(0, 1)] * self.num_weights,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-13, "maxiter": 300},
      ).fun
      for start in starts
    ]
    return min(found)
