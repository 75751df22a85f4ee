"""Newton's method in the weights: what it asks, measures and ends at.

G groups, K checkpoints.
"""

import math

import numpy as np
import pytest

from jaxmerge.bayesopt.trials import asked_by
from jaxmerge.errors import InputError
from jaxmerge.evaluation.measurements import MEASURED
from jaxmerge.evaluation.weight_search import (
  choose,
)
from jaxmerge.simplex.bounds import Bounds
from jaxmerge.simplex.quadratic import minimise
from jaxmerge.simplex.quadratic_model import Quadratic, Region
from tests.evaluation.bowls import (
  INSIDE,
  SEQUENCES,
  TOKENS,
  Bowl,
  ended,
  run,
  weight_search,
)


def test_one_step_to_the_optimum_of_a_quadratic(tmp_path):
  # Of so much noise that a gradient measured anew does not pay.
  bowl = Bowl(INSIDE, noise=0.4)
  search = weight_search((1, 3))
  study, ending = run(tmp_path / "j", bowl, search)
  trials = ended(study)
  assert ending == "converged"
  assert [asked_by(t) for t in trials] == ["start", "lawa", "step"]
  assert [MEASURED in t.user_attrs for t in trials] == [False, True, False]
  weights = search.domain.weights(trials[2].params)
  np.testing.assert_allclose(weights, bowl.optimum_GxK, atol=1e-6)
  assert choose(study, search).number == 2
  # Score, gradients and curvature in one trial.
  tokens = [t.user_attrs["tokens"] for t in trials]
  assert tokens == [TOKENS, 11 * TOKENS, TOKENS]
  assert [c for _, c in bowl.measured_at] == [True]
  # A larger budget adds nothing.
  more = search._replace(num_trials=12)
  study, ending = run(tmp_path / "j", bowl, more)
  assert (ending, len(ended(study))) == ("converged", 3)
  assert len(study.trials) == 12


def test_each_group_goes_to_its_own_optimum(tmp_path):
  bowl = Bowl([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]], noise=1e-4)
  search = weight_search((2, 3))
  study, _ = run(tmp_path / "j", bowl, search)
  weights = search.domain.weights(choose(study, search).params)
  np.testing.assert_allclose(weights, bowl.optimum_GxK, atol=0.01)
  step = ended(study)[2].system_attrs["gp_hedge:asked"]["step"]
  assert step["partition"] == "own"
  assert step["change"] < 0 < step["gain"]


def test_two_checkpoints_and_a_bound(tmp_path):
  bowl = Bowl([[0.8, 0.2]])
  search = weight_search((1, 2), Bounds(alpha=0.4))
  study, ending = run(tmp_path / "j", bowl, search)
  [weights] = search.domain.weights(choose(study, search).params)
  assert ending == "converged"
  assert weights == pytest.approx([0.6, 0.4])
  assert asked_by(ended(study)[1]) == "lawa"
  assert search.domain.weights(ended(study)[1].params) == [[0.5, 0.5]]


def test_negative_weights(tmp_path):
  bowl = Bowl([[-0.3, 0.2, 1.1]])
  search = weight_search((1, 3), Bounds(negative=True))
  study, _ = run(tmp_path / "j", bowl, search)
  weights = search.domain.weights(choose(study, search).params)
  np.testing.assert_allclose(weights, bowl.optimum_GxK, atol=1e-6)
  inside = weight_search((1, 3))
  study, _ = run(tmp_path / "inside", bowl, inside)
  [weights] = inside.domain.weights(choose(study, inside).params)
  assert min(weights) >= 0


def test_a_step_too_long_is_halved_and_a_second_one_follows(tmp_path):
  """A curvature four times too small: the step is four times too long."""
  bowl = Bowl([[0.3, 0.37, 0.33]], told=0.25)
  search = weight_search((1, 3))
  study, ending = run(tmp_path / "j", bowl, search)
  asked = [asked_by(t) for t in ended(study)]
  assert asked[:4] == ["start", "lawa", "step", "half"]
  trials = ended(study)
  at = [np.array(search.domain.weights(t.params)) for t in trials]
  np.testing.assert_allclose(at[3], (at[1] + at[2]) / 2, atol=1e-12)
  assert trials[2].value > trials[1].value
  assert ending == "converged"
  # The second step has gradients of its own, and no new curvature.
  assert [c for _, c in bowl.measured_at] == [True, False]
  np.testing.assert_array_equal(
    bowl.measured_at[1][0], at[-1 - asked[::-1].index("step") - 1]
  )
  best = min(t.value for t in trials)
  assert (
    choose(study, search).params == trials[-1].params or best < trials[1].value
  )


def test_the_second_step_is_taken_where_the_model_was_wrong(tmp_path):
  """The measured curvature is half as large again as the true one."""
  bowl = Bowl([[0.3, 0.4, 0.3]], told=1.5, noise=1e-4)
  search = weight_search((1, 3))
  study, ending = run(tmp_path / "j", bowl, search)
  trials = ended(study)
  assert [asked_by(t) for t in trials] == ["start", "lawa", "step", "step"]
  first, second = bowl.measured_at
  assert (first[1], second[1]) == (True, False)
  np.testing.assert_array_equal(
    second[0], search.domain.weights(trials[2].params)
  )
  assert trials[3].value < trials[2].value < trials[1].value
  assert ending == "converged"
  alone = weight_search((1, 3), max_steps=1)
  study, ending = run(
    tmp_path / "one", Bowl([[0.3, 0.4, 0.3]], told=1.5), alone
  )
  assert (len(ended(study)), ending) == (3, "converged")


def test_a_gradient_is_measured_anew_where_another_step_pays(tmp_path):
  """What it would gain, against six forward passes' part of the noise."""
  measured = {}
  for told, noise in [(1.0, 0.1), (1.0, 0.2), (1.5, 0.2)]:
    search = weight_search((1, 3))
    bowl = Bowl([[0.3, 0.45, 0.25]], told=told, noise=noise)
    study, _ = run(tmp_path / f"{told}_{noise}", bowl, search)
    trials = ended(study)
    step = trials[2].system_attrs["gp_hedge:asked"]["step"]
    off = trials[2].value - trials[1].value - step["change"]
    # The curvature is taken to be off by a tenth at least.
    further = -(max(abs(off / step["change"]), 0.1) ** 2) * step["change"]
    pays = further > 6 * 0.02 * step["excess"]
    measured[told, noise] = MEASURED in trials[2].user_attrs
    assert measured[told, noise] == pays
  assert [*measured.values()] == [True, False, True]
  # Of trees in storage it takes a score for each weight.
  bowl = Bowl([[0.3, 0.45, 0.25]], noise=0.1)
  bowl.again = 61
  study, _ = run(tmp_path / "in_storage", bowl, weight_search((1, 3)))
  assert MEASURED not in ended(study)[2].user_attrs


class Skewed(Bowl):
  """A measured curvature that is right along the step and wrong across it.

  In coordinates of the identity H it is 1 + r (u v' + v u'), and the optimum
  lies along u + r v: the step is along u, and the model tells its loss right.
  """

  off = 0.1

  def measured(self, weights_GxK, *, curvature, score):
    found = super().measured(weights_GxK, curvature=curvature, score=score)
    if not curvature:
      return found
    root_FxF = np.linalg.cholesky(self.curvature[:2, :2]).T
    way_F = root_FxF @ (self.optimum_GxK - weights_GxK)[0, :2]
    length = np.linalg.norm(way_F)
    turn_FxF = np.array([[1, self.off], [-self.off, 1]])
    u_F = turn_FxF @ way_F / length / math.sqrt(1 + self.off**2)
    v_F = np.array([-u_F[1], u_F[0]])
    skew_FxF = np.eye(2) + self.off * (np.outer(u_F, v_F) + np.outer(v_F, u_F))
    matrix = np.zeros((3, 3))
    matrix[:2, :2] = root_FxF.T @ skew_FxF @ root_FxF
    return found._replace(curvature=matrix)


def test_a_second_step_where_the_loss_says_nothing_of_the_curvature(tmp_path):
  bowl = Skewed([[0.3, 0.45, 0.25]], noise=0.05)
  search = weight_search((1, 3))
  study, ending = run(tmp_path / "j", bowl, search)
  trials = ended(study)
  first, second = (t.system_attrs["gp_hedge:asked"]["step"] for t in trials[2:])
  change = trials[2].value - trials[1].value
  assert change == pytest.approx(first["change"], rel=1e-6)
  left = [t.value - 3 for t in trials[2:]]
  assert left[0] == pytest.approx(0.01 * -change, rel=0.02)
  assert -second["change"] == pytest.approx(left[0], rel=0.1)
  assert left[1] < 0.02 * left[0]
  assert ending == "converged"


def test_a_second_step_goes_on_to_the_same_optimum(tmp_path):
  """With the partition and the ridge of the first, about where it began."""
  optimum_GxK = [[0.1, 0.6, 0.3], [0.4, 0.3, 0.3]]
  search = weight_search((2, 3))
  bowl = Bowl(optimum_GxK, told=1.3, noise=0.3)
  study, _ = run(tmp_path / "j", bowl, search)
  trials = ended(study)
  first, second = (t.system_attrs["gp_hedge:asked"]["step"] for t in trials[2:])
  assert first["partition"] == second["partition"] == "own"
  assert first["ridge"] == second["ridge"] > 0
  # The optimum with the loss's own curvature and the same penalty.
  lawa_GxK = np.full((2, 3), 1 / 3)
  told = bowl.measured(lawa_GxK, curvature=True, score=None)
  exact = Quadratic(
    lawa_GxK, told.gradients_NxGxK, np.full(SEQUENCES, 10.0), bowl.curvature
  )
  ridge = first["ridge"] * bowl.told
  best = minimise(exact, Region((0.0,) * 3, 1.0), ridge, range(2))
  off = [
    np.linalg.norm(search.domain.weights(t.params) - best.weights_GxK)
    for t in trials[1:]
  ]
  assert off[2] < 0.4 * off[1] < 0.16 * off[0]


def test_no_step_is_made_for_less_than_the_noise(tmp_path):
  lawa = [1 / 3, 1 / 3 + 0.01, 1 / 3 - 0.01]
  study, ending = run(tmp_path / "j", Bowl([lawa], noise=0.5))
  assert (len(ended(study)), ending) == (2, "converged")
  search = weight_search((1, 3), tolerance=0.0)
  study, _ = run(tmp_path / "k", Bowl([lawa], noise=0.01), search)
  assert len(ended(study)) > 2


class FarBowl(Bowl):
  """Beyond a distance of the optimum the loss is no number."""

  reach = math.inf

  def loss(self, weights_GxK):
    far = np.linalg.norm(np.array(weights_GxK) - self.optimum_GxK)
    return super().loss(weights_GxK) + (np.nan if far > self.reach else 0)


def test_a_mean_that_diverges_is_moved_to_the_last_checkpoint(tmp_path):
  bowl = FarBowl([[0.05, 0.05, 0.9]], scale=9.0)
  bowl.reach = 0.4
  study, ending = run(tmp_path / "j", bowl)
  trials = ended(study)
  assert [t.state.name for t in trials[:3]] == ["COMPLETE", "FAIL", "COMPLETE"]
  assert [asked_by(t) for t in trials[:4]] == ["start", "lawa", "half", "half"]
  assert ending == "converged"
  search = weight_search((1, 3))
  best = choose(study, search)
  np.testing.assert_allclose(
    search.domain.weights(best.params), bowl.optimum_GxK, atol=1e-5
  )


def test_where_no_mean_helps_the_last_checkpoint_is_measured(tmp_path):
  """Better beyond the last checkpoint, and worse on every way to a mean."""
  bowl = Bowl([[-0.05, -0.05, 1.1]])
  search = weight_search((1, 3), Bounds(beta=0.3))
  study, _ = run(tmp_path / "j", bowl, search)
  trials = ended(study)
  asked = [asked_by(t) for t in trials]
  assert asked == ["start", "lawa", "half", "half", "base", "step"]
  np.testing.assert_array_equal(bowl.measured_at[0][0], [[0, 0, 1]])
  assert trials[4].params == trials[0].params
  found = search.domain.weights(choose(study, search).params)
  np.testing.assert_allclose(found, bowl.optimum_GxK, atol=1e-5)
  # On the simplex the last checkpoint is the best there is.
  search = weight_search((1, 3))
  study, ending = run(tmp_path / "k", bowl, search)
  assert (choose(study, search).number, ending) == (0, "converged")


def test_identical_checkpoints_end_without_a_step(tmp_path):
  bowl = Bowl(INSIDE, noise=0.0, scale=0.0)
  study, ending = run(tmp_path / "j", bowl)
  assert (len(ended(study)), ending) == (2, "converged")
  assert choose(study, weight_search((1, 3))).number == 0


def test_a_derivative_that_is_not_finite_is_refused(tmp_path):
  bowl = Bowl(INSIDE)
  bowl.noise_NxGxK[3] = math.inf
  bowl.loss = lambda weights_GxK: np.full(SEQUENCES, 3.0)
  with pytest.raises(InputError, match="by the weights is not finite"):
    run(tmp_path / "j", bowl)


def test_stopped_early_is_no_better(tmp_path):
  """A score of fewer sequences, which a beaten merge has."""

  class Stopping(Bowl):
    def score(self, weights_GxK, best=None, *, in_parts=False):
      found = super().score(weights_GxK, best)
      beaten = best is not None and found.mean > best.mean + 0.01
      return found.first(4) if beaten else found

  search = weight_search((1, 3))._replace(early_stop=True)
  bowl = Stopping([[0.3, 0.37, 0.33]], told=0.25)
  study, _ = run(tmp_path / "j", bowl, search)
  states = {asked_by(t): t.state.name for t in ended(study)[:3]}
  assert states == {"start": "COMPLETE", "lawa": "COMPLETE", "step": "PRUNED"}
  assert asked_by(ended(study)[3]) == "half"
