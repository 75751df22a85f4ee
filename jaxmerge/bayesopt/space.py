"""The search spaces: simplices, or a box of float parameters.

D coordinates, C candidates, G groups of K weights. A space maps Optuna
parameters to coordinates of the Gaussian process and back; every parameter
leaves as a Python float.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from scipy.stats import qmc

from jaxmerge.errors import InputError, check
from jaxmerge.simplex import points
from jaxmerge.simplex.bounds import (
  HIGHEST,
  LOWEST,
  Bounds,
  normalised,
  unit_from_weights,
)

Distributions = dict[str, BaseDistribution]
_NUM_CANDIDATES = 256
# A grid at least this fine in one dimension: the climb does the rest.
_LINE = 257


@dataclasses.dataclass(frozen=True)
class Simplices:
  """The named parameters of each group are >= 0 and sum to 1.

  Coordinates are the parameters themselves, or, of negative weights, the
  weights that they stand for: in both a checkpoint alone is a 1 among zeros.

  Attributes:
    groups_GxK: names, group by group.
    starts_NxK: unit points of the first trials, alike in every group.
    negative: the parameters stand for weights in [-1, 2], as Bounds says.
  """

  groups_GxK: tuple[tuple[str, ...], ...]
  starts_NxK: tuple[tuple[float, ...], ...]
  negative: bool = False

  @property
  def groups(self) -> int:
    return len(self.groups_GxK)

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(itertools.chain(*self.groups_GxK))

  @property
  def size(self) -> int:
    """The number of weights in a group."""
    return len(self.groups_GxK[0])

  @property
  def reach(self) -> tuple[float, float]:
    """The lowest and the highest coordinate."""
    return (LOWEST, HIGHEST) if self.negative else points.UNIT

  @property
  def _scale(self) -> float:
    """d coordinate / d parameter."""
    return 1 - self.size * self.reach[0]

  def of_unit(self, unit: np.ndarray) -> np.ndarray:
    """Coordinates of parameters, in any array."""
    return self.reach[0] + self._scale * unit

  def distributions(self) -> Distributions:
    return {name: FloatDistribution(0.0, 1.0) for name in self.names}

  def candidates(self, seed: int) -> np.ndarray:
    size, groups = self.size, self.groups
    if size == 2 and groups == 1:
      return self.of_unit(points.grid(2, _LINE))
    drawn = points.candidates(size, _NUM_CANDIDATES, seed)
    centre = np.full((1, size), 1 / size)
    some = [drawn, points.vertices(size), centre]
    if self.negative:
      some.append(self._spread(_NUM_CANDIDATES, seed))
    tied = np.concatenate(some)
    if groups == 1:
      return tied
    free = points.candidates(size, _NUM_CANDIDATES, seed, groups)
    # Every group alike, then each on its own.
    found = [np.tile(tied, groups), free]
    if self.negative:
      found.append(self._spread(_NUM_CANDIDATES, seed, groups))
    return np.concatenate(found)

  def _spread(self, count: int, seed: int, groups: int = 1) -> np.ndarray:
    """Low-discrepancy points of the whole domain."""
    drawn = points.candidates(self.size, count, seed, groups)
    if not self.negative:
      return drawn
    lowest, highest = self.reach
    parts = drawn.reshape(count, groups, self.size)
    unit = points.within(parts, (highest - lowest) / self._scale)
    return self.of_unit(unit).reshape(drawn.shape)

  def start(self, number: int, num_startup: int, seed: int) -> np.ndarray:
    """The given starts, then low-discrepancy points."""
    given = len(self.starts_NxK)
    if number < given:
      start_K = self.of_unit(np.array(self.starts_NxK[number]))
      return np.tile(start_K, self.groups)
    # A power of two of points, as Sobol's sequence wants them.
    num_points = 1 << (num_startup - 1).bit_length()
    drawn = self._spread(num_points, seed)
    return np.tile(drawn[number - given], self.groups)

  def coordinates(self, params: Mapping[str, float]) -> np.ndarray:
    unit_D = np.array([params[name] for name in self.names], np.float64)
    return self.of_unit(unit_D)

  def spans(self, params: Mapping[str, float]) -> np.ndarray:
    """d parameter / d coordinate, at a point."""
    del params
    return np.full(len(self.names), 1 / self._scale)

  def params(self, point_D: np.ndarray) -> dict[str, float]:
    unit_D = (np.asarray(point_D) - self.reach[0]) / self._scale
    parts = np.split(unit_D, self.groups)
    unit = [v for part in parts for v in normalised(part.tolist())]
    return dict(zip(self.names, unit, strict=True))


@dataclasses.dataclass(frozen=True)
class Box:
  """Float parameters, each mapped to [0, 1], by its logarithm where log."""

  items: tuple[tuple[str, FloatDistribution], ...]

  groups = 0
  reach = points.UNIT

  def distributions(self) -> Distributions:
    return dict(self.items)

  def candidates(self, seed: int) -> np.ndarray:
    if len(self.items) == 1:
      return np.linspace(0, 1, _LINE)[:, None]
    sobol = qmc.Sobol(len(self.items), scramble=True, rng=seed)
    return sobol.random(_NUM_CANDIDATES)

  def start(self, number: int, num_startup: int, seed: int) -> np.ndarray:
    return np.array(
      [stratum(name, number, num_startup, seed) for name, _ in self.items]
    )

  def coordinates(self, params: Mapping[str, float]) -> np.ndarray:
    return np.array([_to_unit(params[name], d) for name, d in self.items])

  def spans(self, params: Mapping[str, float]) -> np.ndarray:
    return np.array(
      [
        params[name] * np.log(d.high / d.low) if d.log else d.high - d.low
        for name, d in self.items
      ]
    )

  def params(self, point_D: np.ndarray) -> dict[str, float]:
    return {
      name: from_unit(float(u), d)
      for (name, d), u in zip(self.items, point_D, strict=True)
    }


Space = Simplices | Box


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


def _to_unit(value: float, distribution: FloatDistribution) -> float:
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
      (name, d)
      for name, d in sorted(distributions.items())
      if isinstance(d, FloatDistribution) and not d.single()
    )
  )


def simplices_of(
  names: Sequence[str] | Sequence[Sequence[str]],
  starts: Sequence[Sequence[float]] | None,
  negative: bool = False,
) -> Simplices:
  """One simplex of the names, or one of each group of names.

  Args:
    names: two or more different ones, or groups of them of one length.
    starts: unit points of the first trials; None: each checkpoint alone, last
      first.
    negative: as Simplices says.

  Raises:
    InputError: lists what is wrong with the names and the starts.
  """
  listed = [names] if all(isinstance(n, str) for n in names) else names
  if isinstance(names, str) or any(isinstance(group, str) for group in listed):
    raise InputError(
      "a simplex is a sequence of names, or of groups of names, such as "
      f'("w_0", "w_1"); got {names!r}'
    )
  groups = tuple(tuple(map(str, group)) for group in listed)
  flat = [name for group in groups for name in group]
  size = len(groups[0])
  problems = []
  uneven = any(len(group) != size for group in groups)
  if size < 2 or len(set(flat)) < len(flat) or uneven:
    problems.append(
      f"a simplex needs two or more different names, and each group as many;"
      f" got {[list(group) for group in groups]}"
    )
  bounds = Bounds(negative=negative)
  if starts is None:
    alone_KxK = points.vertices(size).tolist()
    starts = [unit_from_weights(alone_K, bounds) for alone_K in alone_KxK]
  most = bounds.highest_unit(size)
  for start in starts:
    off = abs(sum(start) - 1)
    if (
      len(start) != size
      or min(start) < 0
      or off > 1e-9
      or max(start) > most + 1e-9
    ):
      problems.append(
        f"a start needs {size} weights >= 0 that sum to 1"
        f"{f', none above {most:g}' if negative else ''}, got {list(start)}"
      )
  check(problems)
  exact = [tuple(normalised(start)) for start in starts]
  return Simplices(groups, tuple(exact), negative)
