"""Standard errors of scores and of paired differences, and what they show.

Errors are clustered, intervals and tests are Student's on C - 1 degrees of
freedom (Miller 2024, arXiv 2411.00640, on evaluations; Cochran, Sampling
Techniques, 3rd edition, section 9A, on the ratio).

N items, C clusters of them, B resamples, M tests, T terms of a sum.
"""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from jaxmerge.evaluation.score import Score, WeightedSum

LEVEL = 0.95  # of intervals; a test is significant below 1 - LEVEL
POWER = 0.8
RESAMPLES = 4000
# Draws of clusters that are held at once.
_MOST_DRAWS = 2_000_000


class Estimate(NamedTuple):
  """A mean in the unit of its score, and its standard error.

  Attributes:
    mean, stderr: of what was estimated; the error of one cluster is infinite.
    clusters: that the error is from.
  """

  mean: float
  stderr: float
  clusters: int

  @property
  def p_value(self) -> float:
    """Two-sided, of a mean of 0; 1 where it is exactly 0 or has no error.

    Student's t test. Where all clusters agree exactly, and not on 0, it is that
    of signs, 2 / 2^C, as of three answers that are all right now.
    """
    if self.mean == 0 or not math.isfinite(self.stderr):
      return 1.0
    if self.stderr == 0:
      return math.ldexp(2.0, -self.clusters)
    t = abs(self.mean) / self.stderr
    return float(2 * special.stdtr(self.clusters - 1, -t))

  def interval(self, level: float = LEVEL) -> tuple[float, float]:
    """The mean -+ its half width."""
    half = self.half_width(level)
    return self.mean - half, self.mean + half

  def half_width(self, level: float = LEVEL) -> float:
    """Half of the interval: t_{C - 1} standard errors."""
    if not math.isfinite(self.stderr):
      return math.inf
    return self.stderr * _quantile(self.clusters, 0.5 + level / 2)

  def detectable(self, power: float = POWER, level: float = LEVEL) -> float:
    """The least true mean that a test of such an error finds so often.

    (t_{level} + t_{power}) standard errors: 2.8 of them with many clusters.
    """
    if not math.isfinite(self.stderr):
      return math.inf
    return self.stderr * _reach(self.clusters, power, level)

  def items_needed(
    self,
    effect: float,
    items: int,
    power: float = POWER,
    level: float = LEVEL,
  ) -> int:
    """The number of items of such clusters with which `effect` is detectable.

    The error falls as 1 / sqrt(C), and items come as many to a cluster as now.

    Args:
      effect: a true mean, above 0.
      items: N that the error is from.

    Raises:
      ValueError: the effect is not above 0, or the error is of one cluster.
    """
    if not (effect > 0 and math.isfinite(self.stderr)):
      raise ValueError(f"no number of items finds {effect} from {self}")
    deviation = self.stderr * math.sqrt(self.clusters)

    def is_enough(clusters: int) -> bool:
      stderr = deviation / math.sqrt(clusters)
      return stderr * _reach(clusters, power, level) <= effect

    high = 2
    while not is_enough(high):
      high *= 2
    needed = bisect.bisect_left(range(high), True, lo=2, key=is_enough)
    return math.ceil(items * needed / self.clusters)


def _quantile(clusters: int, share: float) -> float:
  return float(special.stdtrit(clusters - 1, share))


def _reach(clusters: int, power: float, level: float) -> float:
  return _quantile(clusters, 0.5 + level / 2) + _quantile(clusters, power)


def difference(score: Score, reference: Score) -> Estimate:
  """The mean of `score` minus that of `reference`, paired by item.

  Both must be of the same items. Exactly zero when every item has the same
  value.
  """
  return ratio(score.values_N - reference.values_N, score)


def ratio(values_N: np.ndarray, score: Score) -> Estimate:
  """Sum of values over sum of weights, with its cluster-robust error.

  Linearised: with u_c the sum over the items of cluster c of (value - mean *
  weight), the variance is C / (C - 1) * sum_c u_c^2 / (sum of weights)^2
  (Cochran, Sampling Techniques, 3rd edition, section 9A). A weighted sum's are
  those of its tasks, as `weighted` adds them.
  """
  if isinstance(score, WeightedSum):
    found = [
      ratio(values_N[score.part_N == t], score.of_part(t))
      for t in range(len(score.parts))
    ]
    return weighted([part.factor for part in score.parts], found)
  if not len(values_N):  # as of a task, in the first items of several
    return Estimate(math.nan, math.inf, 0)
  weight = score.weights_N.sum()
  mean = float(values_N.sum() / weight)
  residuals_C = _by_cluster(values_N - mean * score.weights_N, score)
  clusters = len(residuals_C)
  if clusters < 2:
    return Estimate(mean, math.inf, clusters)
  variance = clusters / (clusters - 1) * float(np.sum(residuals_C**2))
  return Estimate(mean, math.sqrt(variance) / float(weight), clusters)


def weighted(
  factors_T: Sequence[float], found_T: Sequence[Estimate]
) -> Estimate:
  """The sum of factor times mean over T independent estimates.

  Its variance is sum_t factor_t^2 stderr_t^2, on the degrees of freedom of
  Welch and Satterthwaite: with v_t the terms, (sum v_t)^2 / sum v_t^2 / (C_t -
  1) (Satterthwaite 1946, Biometrics Bulletin 2), rounded down.
  """
  mean = sum(a * each.mean for a, each in zip(factors_T, found_T, strict=True))
  # What has no weight has no error, whatever is known of it.
  terms = [(a, each) for a, each in zip(factors_T, found_T) if a]
  variances = [(a * each.stderr) ** 2 for a, each in terms]
  total = math.fsum(variances)
  if not math.isfinite(total):
    return Estimate(mean, math.inf, min(each.clusters for _, each in terms))
  if total == 0:
    clusters = sum(each.clusters - 1 for _, each in terms) + 1
    return Estimate(mean, 0.0, clusters)
  share = math.fsum(
    v**2 / (each.clusters - 1) for v, (_, each) in zip(variances, terms)
  )
  return Estimate(mean, math.sqrt(total), math.floor(total**2 / share) + 1)


def _by_cluster(values_N: np.ndarray, score: Score) -> np.ndarray:
  _, cluster_N = np.unique(score.clusters_N, return_inverse=True)
  return np.bincount(cluster_N, weights=values_N)


def bootstrap(
  values_N: np.ndarray,
  score: Score,
  *,
  seed: int,
  resamples: int = RESAMPLES,
  level: float = LEVEL,
) -> tuple[float, float]:
  """An interval of `ratio` from resampled clusters, without a normal law.

  Percentiles, whose levels are widened for few clusters (Hesterberg 2015, The
  American Statistician 69, "expanded percentile"): Phi(-+ sqrt(C / (C - 1))
  t_{C - 1}). With 12 unequal clusters, at 95%, it covered 94.1% of 2,000
  simulated studies, plain percentiles 90.0 and BCa 88.9; with skewed values
  92.4, 88.5 and 88.3.

  Args:
    values_N: as for ratio; of two scores, their values' differences.
    seed: of the draws; the same gives the same interval.
  """
  values_C = _by_cluster(values_N, score)
  weights_C = _by_cluster(score.weights_N, score)
  clusters = len(values_C)
  if clusters < 2:
    return -math.inf, math.inf
  random = np.random.default_rng(seed)
  means = []
  rows = max(1, _MOST_DRAWS // clusters)
  for start in range(0, resamples, rows):
    count = min(rows, resamples - start)
    drawn_BxC = random.integers(clusters, size=(count, clusters))
    means.append(values_C[drawn_BxC].sum(1) / weights_C[drawn_BxC].sum(1))
  quantile = _quantile(clusters, 0.5 + level / 2)
  outside = special.ndtr(-quantile * math.sqrt(clusters / (clusters - 1)))
  low, high = np.quantile(np.concatenate(means), [outside, 1 - outside])
  return float(low), float(high)


class McNemar(NamedTuple):
  """Items that one of two models alone gets right, and what they show.

  Attributes:
    gained: right by the model, wrong by the reference; lost: the other way.
    p_value: two-sided; 1 where no item tells them apart.
  """

  gained: int
  lost: int
  p_value: float


def mcnemar(is_right_N: np.ndarray, reference_N: np.ndarray) -> McNemar:
  """McNemar's exact test of two models on the same items (McNemar 1947).

  The binomial test of `gained` in gained + lost at 1/2. It takes each item for
  independent of the others: where clusters of them are not, it finds too much,
  and the clustered `difference` is what to look at.

  Args:
    is_right_N: bool, whether the model gets an item right.
    reference_N: of the other model.
  """
  gained = int(np.count_nonzero(is_right_N & ~reference_N))
  lost = int(np.count_nonzero(~is_right_N & reference_N))
  if not gained + lost:
    return McNemar(0, 0, 1.0)
  p_value = stats.binomtest(gained, gained + lost).pvalue
  return McNemar(gained, lost, float(p_value))


def holm(p_values_M: Sequence[float]) -> list[float]:
  """P-values of M tests, adjusted so that any false find has its level.

  Those below 0.05 are what Holm's procedure rejects at that level, whatever
  the tests have in common: max over j <= i of (M - j + 1) p_(j), at most 1
  (Holm 1979, Scandinavian Journal of Statistics 6).

  Raises:
    ValueError: a value is not in [0, 1].
  """
  p_M = np.asarray(p_values_M, np.float64)
  if not ((p_M >= 0) & (p_M <= 1)).all():
    raise ValueError(f"p-values must be in [0, 1]: {p_values_M}")
  order_M = np.argsort(p_M, kind="stable")
  scaled_M = p_M[order_M] * np.arange(len(p_M), 0, -1)
  adjusted_M = np.empty_like(p_M)
  adjusted_M[order_M] = np.minimum(np.maximum.accumulate(scaled_M), 1.0)
  return adjusted_M.tolist()
