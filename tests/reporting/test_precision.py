"""How sure weights are: from fake measurements, against plain NumPy.

C documents, G groups, K checkpoints, D = G K.
"""

import math
from types import SimpleNamespace

import numpy as np
import optuna
import pytest

from jaxmerge.bayesopt.space import simplices_of
from jaxmerge.bayesopt.trials import ASKED
from jaxmerge.evaluation.domain import Domain
from jaxmerge.evaluation.evaluator import WEIGHT_JVP_PASSES, WEIGHT_VJP_PASSES
from jaxmerge.evaluation.measurements import MEASURED, Measurement, kept
from jaxmerge.evaluation.score import Score
from jaxmerge.evaluation.search_method import SEARCH_METHODS, Findings
from jaxmerge.evaluation.weight_search import Choice
from jaxmerge.merging.groups import Groups
from jaxmerge.merging.resident import IN_STORAGE, ON_DEVICES, Placement
from jaxmerge.reporting import precision
from jaxmerge.reporting.advice import Estimate, advice, described
from jaxmerge.reporting.precision import (
  estimated,
  moved,
  planned,
)
from jaxmerge.simplex.bounds import Bounds
from tests.helpers import quiet

GP_HEDGE = SEARCH_METHODS["gp_hedge"]
STEPS = (4, 8, 12)
ONE = Domain(STEPS, Groups(("",), None, (1.0,)), Bounds())
TWO = Domain(STEPS, Groups(("embed", "rest"), None, (0.3, 0.7)), Bounds())


def _curvature(rng, groups, count=3):
  free = groups * (count - 1)
  root = rng.normal(size=(free, 2 * free))
  matrix = (root @ root.T / free).reshape(groups, count - 1, groups, -1)
  matrix = np.pad(matrix, [(0, 0), (0, 1), (0, 0), (0, 1)])
  return matrix.reshape(groups * count, groups * count)


def _measurement(seed=0, groups=1, documents=12, slope=None):
  """Documents whose mean gradient is `slope`, or what they happen to have."""
  rng = np.random.default_rng(seed)
  counts_C = rng.integers(50, 200, documents).astype(float)
  gradients = rng.normal(size=(documents, groups, 3)) * counts_C[:, None, None]
  gradients[..., -1] = 0
  if slope is not None:
    mean = gradients.sum(0) / counts_C.sum()
    gradients += counts_C[:, None, None] * (slope - mean)
  return Measurement(1e-2 * gradients, counts_C, _curvature(rng, groups))


def _sandwich(measurement):
  """Standard errors and tr(H^-1 C) / 2 with the last weight as the rest."""
  groups = measurement.gradients_CxGxK.shape[1]
  first = np.arange(groups * 3).reshape(groups, 3)[:, :-1].ravel()
  h = measurement.curvature_DxD[np.ix_(first, first)]
  counts_C = measurement.counts_C
  g = measurement.gradients_CxGxK.reshape(len(counts_C), -1)[:, first]
  mean = g.sum(0) / counts_C.sum()
  off = g - counts_C[:, None] * mean
  count = len(counts_C)
  c = count / (count - 1) * off.T @ off / counts_C.sum() ** 2
  cov = np.linalg.inv(h) @ c @ np.linalg.inv(h)
  rest = np.kron(np.eye(groups), -np.ones((1, 2)))
  last_G = np.sqrt(np.diag(rest @ cov @ rest.T))
  own = np.sqrt(np.diag(cov)).reshape(groups, 2)
  stderr = np.concatenate([own, last_G[:, None]], axis=1)
  return stderr, np.trace(np.linalg.inv(h) @ c) / 2


@pytest.mark.parametrize("domain", [ONE, TWO])
def test_standard_errors_are_the_sandwich_over_documents(domain):
  groups = len(domain.groups.names_G)
  weights = [[0.3, 0.3, 0.4]] * groups
  measurement = _measurement(groups=groups, slope=np.zeros((groups, 3)))
  model = moved(measurement, weights, weights)
  found = estimated(model, domain, (range(groups), 0.0))
  stderr_GxK, excess = _sandwich(measurement)
  # The solver's inverse is damped a little.
  np.testing.assert_allclose(found.stderr_GxK, stderr_GxK, rtol=1e-5)
  assert found.excess == pytest.approx(excess, rel=1e-5)
  assert found.left == pytest.approx(0, abs=1e-12)
  told = described(found, domain, 64)
  name = "all parameters" if groups == 1 else "rest"
  assert told.stderr[name][8] == pytest.approx(stderr_GxK[-1, 1], rel=1e-5)
  assert told.weights[name] == {4: 0.3, 8: 0.3, 12: 0.4}


def test_a_model_at_other_weights_is_the_one_measured_there():
  measurement = _measurement(1, groups=2)
  there, here = np.array([[0.2, 0.3, 0.5]] * 2), np.array([[0.1, 0.6, 0.3]] * 2)
  at_there = moved(measurement, there, there)
  at_here = moved(measurement, there, here)
  told = at_there.change(here)
  assert at_here.change(there) == pytest.approx(-told)
  # Finite differences of the model's loss, along one weight of one group.
  way = np.zeros((2, 3))
  way[1] = [1, 0, -1]
  up, down = (at_there.change(here + s * 1e-4 * way) for s in (1, -1))
  slope = np.sum(at_here.gradient_GxK * way)
  assert slope == pytest.approx((up - down) / 2e-4, rel=1e-6)
  spread = measurement.gradients_CxGxK[0] / measurement.counts_C[0]
  centred = spread - at_there.gradient_GxK
  found = at_here.gradients_CxGxK[0] / at_here.counts_C[0]
  np.testing.assert_allclose(found - at_here.gradient_GxK, centred, atol=1e-12)


def test_what_is_left_is_what_the_optimum_would_gain():
  weights = [[0.3, 0.3, 0.4]]
  slope = np.array([[5.0, -2.0, 0.0]])
  measurement = _measurement(slope=slope)
  h = measurement.curvature_DxD[:2, :2]
  g = 1e-2 * slope[0, :2]
  found = estimated(moved(measurement, weights, weights), ONE, ((0,), 0.0))
  assert found.left == pytest.approx(g @ np.linalg.solve(h, g) / 2, rel=1e-5)


def test_nothing_is_left_that_other_documents_would_not_gain():
  """A slope far smaller than what documents differ by."""
  weights = [[0.3, 0.3, 0.4]] * 2
  slope = np.array([[0.01, -0.02, 0.0], [0.02, 0.01, 0.0]])
  measurement = _measurement(groups=2, slope=slope)
  model = moved(measurement, weights, weights)
  assert estimated(model, TWO, ((0, 1), 0.0)).left == 0


def _estimate(excess, left=0.0):
  return Estimate([[0.5, 0.5]], [[0.1, 0.1]], excess, left, 0.0)


def test_the_advice_follows_from_the_numbers():
  limit = advice(_estimate(8e-4), 64)
  assert limit == (
    "the search split is the limit: 256 sequences (config.search_sequences)"
    " would gain about 0.6 millinats/token"
  )
  assert "large enough" in advice(_estimate(1e-4), 64)
  assert "the held-out text is the limit" in advice(
    _estimate(8e-4), 64, is_whole=True
  )
  # What weights that are the best in truth lack on this split is no reason.
  assert advice(_estimate(8e-4, left=8e-4), 64) == limit
  more = advice(_estimate(8e-4, left=5e-3), 64, finder="more trials")
  assert more == (
    "other weights may be about 5 millinats/token better on this split: more"
    " trials would find them"
  )
  far = advice(_estimate(8e-4, left=0.1234), 64, finder="more trials")
  assert "about 120 millinats/token better" in far
  # Where nothing would find them they are not told of.
  assert advice(_estimate(8e-4, left=5e-3), 64) == limit


class _Merged:
  """Measures a made-up quadratic; counts how often."""

  def __init__(self, measurement, tokens=100):
    self.measurement = measurement
    count = len(measurement.counts_C)
    self.last = Score(
      np.ones(count),
      measurement.counts_C,
      np.arange(count),
      "nats/token",
      "minimize",
      tokens,
    )
    self.tokens = 500
    self.asked = []

  def measured(self, weights_GxK, *, curvature):
    assert curvature
    self.asked.append(weights_GxK)
    self.tokens += 900
    m = self.measurement
    return self.last, m.gradients_CxGxK, m.curvature_DxD


class _Case:
  """A search without trials that measure, and its study."""

  def __init__(self, measurement, domain=ONE, problems=(), **changes):
    self.study = optuna.create_study()
    self.merged = _Merged(measurement)
    self.losses = SimpleNamespace(
      merged=self.merged, derivative_problems=lambda: list(problems)
    )
    evaluator = SimpleNamespace(name="heldout_loss", has_curvature=True)
    # A method that never says that it has converged.
    search = SimpleNamespace(
      domain=domain, use_curvature=False, method=GP_HEDGE, knobs=None
    )
    asked = {
      "evaluator": evaluator,
      "search": search,
      "search_sequences": 12,
      "has_room": True,
      "place": Placement(ON_DEVICES, 0.0),
    }
    self.ready = SimpleNamespace(**{**asked, **changes})
    space = simplices_of(domain.names_GxK, None)
    self.found = Findings((), space, self.study.direction, domain)

  def told(self, weights_K, number=None):
    domain = self.ready.search.domain
    rows = [weights_K] * len(domain.groups.names_G)
    best = Choice(domain.params(rows), number)
    return precision.told(
      self.study, self.ready, self.losses, self.found, best, quiet
    )


def test_a_search_without_derivatives_measures_once():
  measurement = _measurement(slope=np.zeros((1, 3)))
  case = _Case(measurement)
  first = case.told([0.25, 0.25, 0.5])
  assert first.passes == 9
  stderr_GxK, excess = _sandwich(measurement)
  assert first.excess == pytest.approx(excess, rel=1e-5)
  assert [*first.stderr["all parameters"].values()] == pytest.approx(
    stderr_GxK[0].tolist(), rel=1e-5
  )
  assert case.told([0.25, 0.25, 0.5]) == first
  assert case.merged.asked == [[[0.25, 0.25, 0.5]]]
  other = case.told([0.5, 0.25, 0.25])
  assert len(case.merged.asked) == 2
  assert other.weights["all parameters"][4] == 0.5


def _trial(number, weights_GxK, domain, measurement=None, **record):
  params = domain.params(weights_GxK)
  return optuna.trial.create_trial(
    params=params,
    distributions=simplices_of(domain.names_GxK, None).distributions(),
    value=1.0,
    user_attrs={MEASURED: kept(measurement, None, number)}
    if measurement
    else {},
    system_attrs={ASKED: {"asked_by": "step", "params": params, **record}},
  )


def test_what_trials_have_measured_is_not_measured_again():
  """With the curvature of one trial and the gradients of a later one."""
  here = [[0.25, 0.25, 0.5]] * 2
  old = [[0.125, 0.375, 0.5]] * 2
  early = _measurement(3, groups=2)
  late = _measurement(4, groups=2)._replace(curvature_DxD=None)
  case = _Case(early, TWO)
  step = {"partition": "shared", "ridge": 0.5}
  trials = [
    _trial(0, [[0.0, 0.0, 1.0]] * 2, TWO),
    _trial(1, old, TWO, early),
    _trial(2, old, TWO, late),
    _trial(3, here, TWO, step=step),
  ]
  for number, trial in enumerate(trials):
    trial.number = number
  case.found = case.found._replace(trials=trials)
  found = case.told(here[0], 3)
  assert case.merged.asked == []
  assert found.passes == 0
  whole = late._replace(curvature_DxD=early.curvature_DxD)
  model = moved(whole, old, here)
  exact = estimated(model, TWO, ((0, 0), 0.5))
  assert found.excess == pytest.approx(exact.excess, rel=1e-12)
  assert [*found.stderr["rest"].values()] == exact.stderr_GxK[1]
  # Both groups were moved together.
  assert found.stderr["rest"] == pytest.approx(found.stderr["embed"])
  own = estimated(model, TWO, ((0, 1), 0.0))
  assert own.excess > 1.1 * exact.excess


def test_advice_of_more_trials_where_they_would_find_something():
  """The same numbers, of searches that may go on and that have ended."""
  slope = np.array([[8.0, -5.0, 0.0]])
  for is_solved, has_converged, words in (
    (False, False, "more trials, or config.solver='newton', would find them"),
    (True, False, "better on this split: more trials would find them"),
    (True, True, "the search split is large enough"),
  ):
    case = _Case(_measurement(slope=slope))
    case.ready.search.use_curvature = is_solved
    case.ready.search.method = GP_HEDGE._replace(
      has_converged=lambda found, knobs, said=has_converged: said
    )
    assert words in case.told([0.25, 0.25, 0.5]).advice


def test_what_stands_against_it_is_told_and_the_report_goes_on():
  measurement = _measurement()
  bad = "step 4 has parameters that are not finite"
  for case, words in (
    (_Case(measurement, problems=[bad]), bad),
    (_Case(measurement, has_room=False), "need more memory than there is"),
    (_Case(_measurement(documents=1)), "at least two documents"),
  ):
    found = case.told([0.25, 0.25, 0.5])
    assert found.advice.startswith("not known: ")
    assert words in found.advice
    assert (found.excess, found.cost, found.stderr) == (None, "", {})
  gradients = measurement.gradients_CxGxK.copy()
  gradients[0, 0, 0] = math.nan
  case = _Case(measurement._replace(gradients_CxGxK=gradients))
  assert "is not finite" in case.told([0.25, 0.25, 0.5]).advice
  of_accuracy = SimpleNamespace(name="accuracy", has_curvature=False)
  case = _Case(measurement, evaluator=of_accuracy)
  assert case.told([0.25, 0.25, 0.5]) is None


def test_the_plan_says_what_it_takes():
  case = _Case(_measurement(groups=2), TWO, search_sequences=64)
  # Of 16 sequences along two weights of each of two groups.
  bends = WEIGHT_JVP_PASSES * 2 * 2 * 16 / 64
  passes = 1 + WEIGHT_VJP_PASSES + bends
  assert f"about {passes:.0f} forward passes" in planned(case.ready)
  case.ready.place = Placement(IN_STORAGE, 0.0)
  # Itself, and five scores of all sequences and of a quarter of them.
  assert "about 7 forward passes" in planned(case.ready)
  case.ready.has_room = False
  assert planned(case.ready).startswith("not told: derivatives need more")
  case.ready.search.use_curvature = True
  assert planned(case.ready) == "from what the trials measure"
