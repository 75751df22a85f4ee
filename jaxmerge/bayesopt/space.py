"""Where a sampler asks: the unit simplex, or a box of float parameters.

D coordinates, C candidates. A space maps Optuna parameters to coordinates of
the Gaussian process and back; every parameter leaves as a Python float.
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from scipy.stats import qmc

from jaxmerge.bayesopt import simplex
from jaxmerge.errors import InputError

_NUM_CANDIDATES = 256
# A grid at least this fine in one dimension: the climb does the rest.
_LINE = 257


@functools.cache
def _simplex_candidates(num_weights: int, seed: int) -> np.ndarray:
  if num_weights == 2:
    return simplex.grid(2, _LINE)
  drawn = simplex.candidates(num_weights, _NUM_CANDIDATES, seed)
  centre = np.full((1, num_weights), 1 / num_weights)
  return np.concatenate([drawn, simplex.vertices(num_weights), centre])


@functools.cache
def _box_candidates(dimension: int, seed: int) -> np.ndarray:
  if dimension == 1:
    return np.linspace(0, 1, _LINE)[:, None]
  return qmc.Sobol(dimension, scramble=True, rng=seed).random(_NUM_CANDIDATES)


@dataclasses.dataclass(frozen=True)
class Simplex:
  """The named parameters are >= 0 and sum to 1."""

  names: tuple[str, ...]

  @property
  def on_simplex(self) -> bool:
    return True

  def distributions(self) -> dict[str, BaseDistribution]:
    return {name: FloatDistribution(0.0, 1.0) for name in self.names}

  def candidates(self, seed: int) -> np.ndarray:
    return _simplex_candidates(len(self.names), seed)

  def start(self, number: int, num_startup: int, seed: int) -> np.ndarray:
    """The vertices, last checkpoint first, then low-discrepancy points."""
    num_weights = len(self.names)
    if number < num_weights:
      return simplex.vertices(num_weights)[number]
    # A power of two of points, as Sobol's sequence wants them.
    num_points = 1 << (num_startup - 1).bit_length()
    drawn = simplex.candidates(num_weights, num_points, seed)
    return drawn[number - num_weights]

  def coordinates(self, params: Mapping[str, float]) -> np.ndarray:
    return np.array([params[name] for name in self.names], np.float64)

  def params(self, point_D: np.ndarray) -> dict[str, float]:
    return dict(
      zip(self.names, simplex.normalised(point_D.tolist()), strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Box:
  """Float parameters, each mapped to [0, 1], by its logarithm where log."""

  items: tuple[tuple[str, FloatDistribution], ...]

  @property
  def on_simplex(self) -> bool:
    return False

  def distributions(self) -> dict[str, BaseDistribution]:
    return dict(self.items)

  def candidates(self, seed: int) -> np.ndarray:
    return _box_candidates(len(self.items), seed)

  def start(self, number: int, num_startup: int, seed: int) -> np.ndarray:
    return np.array(
      [stratum(name, number, num_startup, seed) for name, _ in self.items]
    )

  def coordinates(self, params: Mapping[str, float]) -> np.ndarray:
    return np.array([to_unit(params[name], d) for name, d in self.items])

  def params(self, point_D: np.ndarray) -> dict[str, float]:
    return {
      name: from_unit(float(u), distribution)
      for (name, distribution), u in zip(self.items, point_D, strict=True)
    }


Space = Simplex | Box


def name_seed(name: str) -> int:
  """A number for a parameter name that is the same in every process."""
  return zlib.crc32(name.encode())


def stratum(name: str, number: int, num_startup: int, seed: int) -> float:
  """Coordinate of start trial `number`: a Latin hypercube, one name at a time.

  Optuna learns the names of a search space one by one, in trial 0; a Latin
  hypercube is the low-discrepancy design that needs no more than one name.
  """
  rng = np.random.default_rng([seed, name_seed(name)])
  order = rng.permutation(num_startup)
  offsets = rng.random(num_startup)
  return float((order[number] + offsets[number]) / num_startup)


def to_unit(value: float, distribution: FloatDistribution) -> float:
  """The coordinate in [0, 1] of a parameter's value."""
  low, high = distribution.low, distribution.high
  if distribution.log:
    low, high, value = np.log(low), np.log(high), np.log(value)
  return float(np.clip((value - low) / (high - low), 0, 1))


def from_unit(unit: float, distribution: FloatDistribution) -> float:
  """The nearest allowed value of a parameter at a coordinate in [0, 1]."""
  low, high = distribution.low, distribution.high
  if distribution.log:
    value = float(np.exp(np.log(low) + unit * (np.log(high) - np.log(low))))
  else:
    value = low + unit * (high - low)
    if distribution.step is not None:
      value = low + round((value - low) / distribution.step) * distribution.step
  return float(min(max(value, low), high))


def box_of(distributions: Mapping[str, BaseDistribution]) -> Box:
  """The box of the float parameters that have more than one value."""
  return Box(
    tuple(
      (name, distribution)
      for name, distribution in sorted(distributions.items())
      if isinstance(distribution, FloatDistribution)
      and not distribution.single()
    )
  )


def simplex_of(names: Sequence[str]) -> Simplex:
  """The simplex of at least two distinct names."""
  if len(names) < 2 or len(set(names)) != len(names):
    raise InputError(
      f"a simplex needs two or more different names, got {list(names)}"
    )
  return Simplex(tuple(names))
