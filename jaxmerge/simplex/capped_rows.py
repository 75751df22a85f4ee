"""Minimises a quadratic over rows that sum to zero within bounds.

P rows (groups), K columns (checkpoints), R = P * K. The domain: every row of
d_PxK sums to zero, low_PxK <= d_PxK <= high_PxK, and low <= 0 <= high, so that
no change, d = 0, is always allowed.
"""

import functools
from typing import NamedTuple

import numpy as np
import scipy.linalg

# Of the largest eigenvalue, added to all of them: directions that the matrix
# says nothing about (equal checkpoints) are left alone, though slopes measured
# in float32 are not quite zero along them.
_DAMPING = 1e-7
# An eigenvalue below is none: its inverse would overflow.
_FLAT = 1e-30
# An entry this near to a bound is at it.
AT_BOUND = 1e-9
# Of the largest slope: a point whose slopes are equal to within is optimal.
_TOLERANCE = 1e-10
_MOST_STEPS = 20000
# Steps between attempts to solve exactly for the entries that are off bounds.
_STEPS_A_TRY = 25


class Bowl(NamedTuple):
  """A matrix with what its solver needs of it, made once for many slopes."""

  matrix_RxR: np.ndarray
  steepest: float
  basis_KxJ: np.ndarray
  factor: tuple[np.ndarray, bool]
  low_PxK: np.ndarray
  high_PxK: np.ndarray


@functools.cache
def sum_zero_basis(count: int) -> np.ndarray:
  """Orthonormal columns (KxJ, J = K - 1) that span the rows of sum zero."""
  centre_KxK = np.eye(count) - 1 / count
  return np.linalg.svd(centre_KxK)[0][:, : count - 1]


def within_rows(matrix_RxR: np.ndarray, basis_KxJ: np.ndarray) -> np.ndarray:
  """The matrix seen by changes basis_KxJ z of every row: PJ x PJ."""
  p = len(matrix_RxR) // len(basis_KxJ)
  spread = np.kron(np.eye(p), basis_KxJ)
  return spread.T @ matrix_RxR @ spread


def bowl(
  matrix_RxR: np.ndarray, low_PxK: np.ndarray, high_PxK: np.ndarray
) -> Bowl:
  """Factors a matrix that is symmetric and positive semidefinite."""
  basis_KxJ = sum_zero_basis(low_PxK.shape[1])
  small = within_rows(matrix_RxR, basis_KxJ)
  steepest, damping = _scale(small)
  factor = scipy.linalg.cho_factor(small + damping * np.eye(len(small)))
  damped_RxR = matrix_RxR + damping * np.eye(len(matrix_RxR))
  return Bowl(
    damped_RxR, steepest + damping, basis_KxJ, factor, low_PxK, high_PxK
  )


def solve_damped(matrix_FxF: np.ndarray, right_FxC: np.ndarray) -> np.ndarray:
  """Solves for the columns; directions of no curvature get the smallest."""
  damping = _scale(matrix_FxF)[1]
  damped_FxF = matrix_FxF + damping * np.eye(len(matrix_FxF))
  return scipy.linalg.cho_solve(scipy.linalg.cho_factor(damped_FxF), right_FxC)


def _scale(matrix: np.ndarray) -> tuple[float, float]:
  """The largest eigenvalue, and what to add to all for a firm smallest one."""
  eigenvalues = np.linalg.eigvalsh(matrix) if matrix.size else np.zeros(1)
  steepest = float(eigenvalues[-1])
  if steepest < _FLAT:
    steepest = 1.0
  return steepest, _DAMPING * steepest - min(float(eigenvalues[0]), 0.0)


def project(
  points_PxK: np.ndarray, low_PxK: np.ndarray, high_PxK: np.ndarray
) -> np.ndarray:
  """Euclidean projection of each row onto the domain, exact.

  The projection is clip(v - t, low, high); its sum falls with t in straight
  lines between the 2K breaks v - low and v - high, and is zero between two
  of them.
  """
  breaks_PxS = np.sort(
    np.concatenate([points_PxK - low_PxK, points_PxK - high_PxK], axis=1), 1
  )
  shifted = points_PxK[:, None, :] - breaks_PxS[:, :, None]
  sums_PxS = np.clip(shifted, low_PxK[:, None], high_PxK[:, None]).sum(-1)
  # The last break whose sum is not below zero; one has: sum(high) >= 0.
  last = np.maximum((sums_PxS >= 0).sum(1) - 1, 0)
  right = np.minimum(last + 1, breaks_PxS.shape[1] - 1)
  rows = np.arange(len(points_PxK))
  start, end = breaks_PxS[rows, last], breaks_PxS[rows, right]
  above, below = sums_PxS[rows, last], sums_PxS[rows, right]
  fall = np.where(above > below, above - below, 1.0)
  shift_P = start + (end - start) * np.where(above > below, above / fall, 0)
  return np.clip(points_PxK - shift_P[:, None], low_PxK, high_PxK)


def violation(
  slopes_PxK: np.ndarray,
  d_PxK: np.ndarray,
  low_PxK: np.ndarray,
  high_PxK: np.ndarray,
) -> float:
  """The largest breach of the Karush-Kuhn-Tucker conditions; 0: optimal.

  With the best multiplier of a row it is half of what the row gains, per unit
  moved, from the entry with the highest slope among those that may fall to
  that with the lowest among those that may rise.
  """
  may_fall = d_PxK > low_PxK + AT_BOUND
  may_rise = d_PxK < high_PxK - AT_BOUND
  highest_P = np.where(may_fall, slopes_PxK, -np.inf).max(1)
  lowest_P = np.where(may_rise, slopes_PxK, np.inf).min(1)
  return float(np.maximum(highest_P - lowest_P, 0).max()) / 2


def minimise_rows(bowl: Bowl, slopes_PxK: np.ndarray) -> np.ndarray:
  """The d_PxK with the lowest sum(slopes * d) + d' matrix d / 2.

  Where no bound binds one linear solve; otherwise FISTA (Beck and Teboulle
  2009) with restarts (O'Donoghue and Candes 2015, the gradient scheme), and
  from time to time an exact solve for the entries that it leaves off bounds.
  """
  p, k = slopes_PxK.shape
  free = scipy.linalg.cho_solve(
    bowl.factor, -(slopes_PxK @ bowl.basis_KxJ).ravel()
  )
  d_PxK = free.reshape(p, k - 1) @ bowl.basis_KxJ.T
  if np.all((d_PxK >= bowl.low_PxK) & (d_PxK <= bowl.high_PxK)):
    return d_PxK
  d_PxK = project(d_PxK, bowl.low_PxK, bowl.high_PxK)
  ahead_PxK, momentum = d_PxK, 1.0
  for step in range(1, _MOST_STEPS + 1):
    here = slopes_PxK + (bowl.matrix_RxR @ ahead_PxK.ravel()).reshape(p, k)
    next_PxK = project(
      ahead_PxK - here / bowl.steepest, bowl.low_PxK, bowl.high_PxK
    )
    if np.sum((ahead_PxK - next_PxK) * (next_PxK - d_PxK)) > 0:
      momentum = 1.0
    following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
    ahead_PxK = next_PxK + (momentum - 1) / following * (next_PxK - d_PxK)
    d_PxK, momentum = next_PxK, following
    if step % _STEPS_A_TRY == 0:
      exact_PxK = _exact(bowl, slopes_PxK, d_PxK)
      if exact_PxK is not None:
        return exact_PxK
  return d_PxK


def _exact(
  bowl: Bowl, slopes_PxK: np.ndarray, d_PxK: np.ndarray
) -> np.ndarray | None:
  """The optimum, if the entries at bounds are those of d; None otherwise."""
  p, k = slopes_PxK.shape
  is_low = d_PxK <= bowl.low_PxK + AT_BOUND
  is_high = d_PxK >= bowl.high_PxK - AT_BOUND
  held_PxK = np.where(is_low, bowl.low_PxK, bowl.high_PxK)
  is_free_R = ~(is_low | is_high).ravel()
  held_PxK = np.where(is_low | is_high, held_PxK, 0.0)
  row_R = np.repeat(np.arange(p), k)[is_free_R]
  rows, row_R = np.unique(row_R, return_inverse=True)
  sums_RxF = (np.arange(len(rows))[:, None] == row_R).astype(float)
  matrix = np.block(
    [
      [bowl.matrix_RxR[np.ix_(is_free_R, is_free_R)], sums_RxF.T],
      [sums_RxF, np.zeros((len(rows), len(rows)))],
    ]
  )
  here_R = slopes_PxK.ravel() + bowl.matrix_RxR @ held_PxK.ravel()
  target = np.concatenate([-here_R[is_free_R], -held_PxK.sum(1)[rows]])
  found_R = held_PxK.ravel()
  found_R[is_free_R] = np.linalg.solve(matrix, target)[: len(row_R)]
  found_PxK = found_R.reshape(p, k)
  if np.any(found_PxK < bowl.low_PxK) or np.any(found_PxK > bowl.high_PxK):
    return None
  if np.abs(found_PxK.sum(1)).max() > AT_BOUND:
    return None
  slopes = slopes_PxK + (bowl.matrix_RxR @ found_R).reshape(p, k)
  off = violation(slopes, found_PxK, bowl.low_PxK, bowl.high_PxK)
  largest = np.abs(slopes_PxK).max() + np.abs(slopes).max()
  return found_PxK if off <= _TOLERANCE * largest else None
