"""Weights in, loss out: merges, derivatives, trials stopped early."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.bayesopt.trials import GRADIENT, GRADIENT_STDERR
from jaxmerge.data.heldout import HeldOut
from jaxmerge.evaluation import statistics, weight_search
from jaxmerge.evaluation.checkpoint_scores import Limits
from jaxmerge.evaluation.evaluators.heldout_loss import HeldOutLoss
from jaxmerge.evaluation.merged_loss import MergedLoss
from jaxmerge.evaluation.objective import Domain, Objective
from jaxmerge.evaluation.score import Score, weighted_sum
from jaxmerge.evaluation.search_method import SEARCH_METHODS
from jaxmerge.evaluation.task_config import Goal
from jaxmerge.evaluation.weight_search import WeightSearch
from jaxmerge.evaluation.weighted_tasks import WeightedTasks
from jaxmerge.merging.groups import groups_of
from jaxmerge.merging.resident import Trees
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.simplex.bounds import Bounds
from jaxmerge.simplex.points import within
from tests.helpers import decoder, random_params

CONFIG = decoder(
  vocab_size=40,
  num_attention_heads=2,
  num_key_value_heads=1,
  intermediate_size=16,
  vocab_multiple=16,
  tie_word_embeddings=True,
)
GRAPH, _ = abstract_decoder(CONFIG)
STEPS = (10, 20, 30)


def _heldout(batch_size=8):
  random = np.random.default_rng(0)
  tokens = random.integers(0, 40, size=(16, 9)).astype(np.int32)
  mask = np.arange(8) < random.integers(4, 9, size=(16, 1))
  split = HeldOut(
    tokens_NxL1=tokens,
    mask_NxL=mask,
    document_N=np.arange(16, dtype=np.int32) // 2,
    bytes_N=mask.sum(1).astype(np.int32) * 2,
    document_ids=tuple("abcdefgh"),
  )
  return HeldOutLoss(GRAPH, make_mesh(), split, batch_size)


def _trees(count):
  trees = [random_params(CONFIG, seed) for seed in range(count)]
  # Random models that differ in their loss: larger weights are worse.
  return [
    jax.tree.map(lambda x, scale=1 + k: scale * x, tree)
    for k, tree in enumerate(trees)
  ]


INSIDE = Bounds()


def _setting(count, bands=0, bounds=INSIDE, batch_size=8):
  trees = _trees(count)
  groups = groups_of(trees[0], str(bands or ""))
  merged = MergedLoss(Trees(trees), _heldout(batch_size), groups)
  return merged, Domain(STEPS[:count], groups, bounds)


def _params(domain, *rows):
  return {
    name: value
    for names, row in zip(domain.names_GxK, rows, strict=True)
    for name, value in zip(names, row, strict=True)
  }


def test_the_objective_merges_scores_and_pairs():
  merged, domain = _setting(2, bounds=Bounds(0.5))
  objective = Objective(merged, domain)
  last = objective(0, _params(domain, [0.0, 1.0]))
  assert last.value == merged.last.mean
  assert last.stderr == 0.0
  assert last.attrs["weights"] == {"10": 0.0, "20": 1.0}
  half = objective(1, _params(domain, [1.0, 0.0]))
  assert half.attrs["weights"] == {"10": 0.5, "20": 0.5}
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *_trees(2))
  by_hand = _heldout().score(mean)
  assert half.value == pytest.approx(by_hand.mean, rel=1e-6)
  assert half.stderr > 0
  assert half.tokens == by_hand.weights_N.sum()


def test_each_group_is_merged_with_its_own_weights():
  merged, domain = _setting(2, bands=2)
  assert domain.groups.names_G == ("embeddings", "band_0", "band_1", "head")
  params = _params(domain, [1, 0], [0, 1], [0.25, 0.75], [0.5, 0.5])
  found = merged.merge(domain.weights(params))
  a, b = _trees(2)
  np.testing.assert_array_equal(
    found["embed"]["embedding"], a["embed"]["embedding"]
  )
  key = ("layers", "mlp", "gate", "kernel")
  kernel, old, new = (
    np.asarray(jax.tree_util.tree_reduce(lambda x, y: x, _at(t, key)))
    for t in (found, a, b)
  )
  np.testing.assert_array_equal(kernel[0], new[0])
  np.testing.assert_allclose(
    kernel[1], 0.25 * old[1] + 0.75 * new[1], rtol=1e-6
  )
  shares = domain.groups.shares_G
  assert sum(shares) == pytest.approx(1)
  mean = domain.mean_weights(params)
  assert mean[0] == pytest.approx(
    shares[0] + 0.25 * shares[2] + 0.5 * shares[3]
  )


def _at(tree, keys):
  for key in keys:
    tree = tree[key]
  return tree


NEGATIVE = Bounds(negative=True)


@pytest.mark.parametrize(
  ("count", "bands", "bounds"),
  [
    *((2, 0, Bounds(0.1, 0.2)), (3, 0, Bounds(0.1, 0.2))),
    *((2, 1, Bounds(0.1, 0.2)), (3, 0, NEGATIVE)),
  ],
)
def test_gradients_are_finite_differences(count, bands, bounds):
  merged, domain = _setting(count, bands, bounds)
  objective = Objective(merged, domain, use_gradients=True)
  groups = len(domain.groups.names_G)
  rng = np.random.default_rng(1)
  rows = rng.dirichlet(np.ones(count), groups)
  if bounds.negative:
    rows = within(0.2 + 0.4 * rows, 0.74)
  found = objective(0, _params(domain, *rows))
  plain = Objective(merged, domain)(0, _params(domain, *rows))
  assert found.value == pytest.approx(plain.value, rel=1e-5)
  assert found.attrs[GRADIENT_STDERR] > 0
  gradient = found.attrs[GRADIENT]
  step = 5e-4 / bounds.scale(count)  # a step of 5e-4 in the weights
  for g, names in enumerate(domain.names_GxK):
    for k in range(count - 1):
      ends = []
      for sign in (1, -1):
        moved = rows.copy()
        moved[g, k] += sign * step
        moved[g, -1] -= sign * step
        ends.append(merged.score(domain.weights(_params(domain, *moved))))
      ahead, behind = (score.mean for score in ends)
      slope = gradient[names[k]] - gradient[names[-1]]
      assert slope == pytest.approx(
        (ahead - behind) / (2 * step), rel=0.05, abs=0.02
      )


def test_a_pairs_slope_has_the_error_of_its_sequences():
  merged, domain = _setting(2)
  objective = Objective(merged, domain, use_gradients=True)
  found = objective(0, _params(domain, [0.4, 0.6]))
  step = 1e-2
  ahead, behind = (
    merged.score([[0.4 - s * step, 0.6 + s * step]]) for s in (1, -1)
  )
  change = statistics.difference(ahead, behind)
  assert found.attrs[GRADIENT_STDERR] * np.sqrt(2) == pytest.approx(
    change.stderr / (2 * step), rel=0.1
  )


def test_at_the_last_checkpoint_a_slope_has_an_error_too():
  merged, domain = _setting(3)
  objective = Objective(merged, domain, use_gradients=True)
  found = objective(0, _params(domain, [0.0, 0.0, 1.0]))
  assert found.value == pytest.approx(merged.last.mean, rel=1e-6)
  assert found.attrs[GRADIENT_STDERR] > 0


def test_a_beaten_trial_is_stopped_and_estimated():
  merged, domain = _setting(2, batch_size=2)
  losses = [merged.score([w]).mean for w in ([1, 0], [0, 1])]
  better, worse = np.eye(2)[np.argsort(losses)].tolist()
  best = _params(domain, better)
  objective = Objective(merged, domain, incumbent=lambda: best)
  whole = merged.score([worse])
  # What is scored again for the comparison has been paid for by its trial.
  first = objective(1, _params(domain, worse))
  stopped = objective(2, _params(domain, worse))
  assert first.tokens == stopped.tokens
  assert stopped.pruned
  assert 0 < stopped.tokens < whole.weights_N.sum()
  # What is told of the whole split is within a few of its standard errors.
  assert stopped.stderr > 0
  gap = abs(stopped.value - whole.mean)
  assert gap < 4 * stopped.stderr
  again = objective(3, best)
  assert not again.pruned
  assert again.tokens == whole.weights_N.sum()
  # The last checkpoint alone, trial 0, is what all are compared with.
  assert not objective(0, _params(domain, worse)).pruned


class Parts:
  """Held-out text as a task, and what is asked of it."""

  def __init__(self, heldout):
    self._heldout, self.asked = heldout, []

  def score(self, params, upto=None):
    self.asked.append((0, upto))
    return weighted_sum(("a",), [self._heldout.score(params, upto)], (1.0,))

  def extend(self, params, known, upto):
    self.asked.append((len(known.values_N), upto))
    found = self._heldout.extend(params, known.of_part(0), upto)
    return weighted_sum(("a",), [found], (1.0,))


def _in_parts(incumbent, limits=()):
  """An objective that stops trials early, and the items that it asks for."""
  merged, domain = _setting(2, batch_size=2)
  parts = merged.evaluator = Parts(merged.evaluator)
  merged.last = parts.score(merged.trees[1])
  parts.asked.clear()
  best = _params(domain, incumbent)
  known = [parts.score(merged.trees[k]) for k in range(2)] if limits else []
  parts.asked.clear()
  objective = Objective(
    merged,
    domain,
    incumbent=lambda: best,
    limits=Limits.of(known, Goal(("a",), (1.0,), "acc", limits, 0, 0, ""))
    if limits
    else None,
  )
  return objective, domain, parts.asked


RUNGS = [(0, 4), (4, 8), (8, 16)]


def test_a_merge_is_scored_again_in_the_parts_that_it_had():
  """As single questions round by their number, a restart must do the same."""
  objective, domain, asked = _in_parts([0.2, 0.8])
  assert not objective(1, _params(domain, [0.1, 0.9])).pruned
  assert asked == RUNGS * 2
  objective, domain, asked = _in_parts([0.0, 1.0])
  objective(0, _params(domain, [0.0, 1.0]))
  assert asked == [(0, 16)]
  del asked[:]
  objective(1, _params(domain, [0.1, 0.9]))
  assert asked == RUNGS  # the last checkpoint is not scored again
  objective, domain, asked = _in_parts([0.0, 1.0])
  objective(1, _params(domain, [0.1, 0.9]))
  assert asked == [(0, 16), *RUNGS]


def test_a_checkpoint_alone_is_scored_as_the_limits_know_it():
  objective, domain, asked = _in_parts([0.0, 1.0], limits=(0.0,))
  found = objective(1, _params(domain, [1.0, 0.0]))
  assert asked == [(0, 16)]
  assert found.constraints == {"task_0": 0.0}


def test_a_merge_is_not_beaten_by_tasks_without_an_error():
  """Whose weight may be 0 in the sum, and which have limits all the same."""

  class Few:
    def score(self, params, upto=None):
      ones = np.ones(2)[:upto]
      clusters = np.arange(2)[:upto]
      return Score(ones, ones, clusters, "nats/token", "minimize", 0)

  merged, _ = _setting(2, batch_size=2)
  better, worse = [[1.0, 0.0]], [[0.0, 1.0]]
  assert len(merged.score(worse, merged.score(better)).values_N) == 4
  goal = Goal(("a", "b"), (1.0, 0.0), "acc", (), 0, 0, "")
  merged.evaluator = WeightedTasks(goal, [merged.evaluator, Few()])
  merged.last = merged.evaluator.score(merged.trees[1])
  assert len(merged.score(worse, merged.score(better)).values_N) == 18


@pytest.mark.parametrize(("errors", "scored"), [(2.5, 16), (3.5, 4)])
def test_a_trial_is_stopped_beyond_three_standard_errors(errors, scored):
  """Behind the best by so many on a quarter, nowhere else."""
  merged, _ = _setting(2, batch_size=2)
  row = [[0.5, 0.5]]
  whole = merged.score(row)
  quarter = whole.first(4)
  spread_N = quarter.weights_N * [1.0, 1.0, -1.0, -1.0]
  mean, stderr, _ = statistics.ratio(spread_N, quarter)
  values_N = whole.values_N.copy()
  # A shift by the same for every token has no error of its own.
  values_N[:4] -= spread_N + (errors * stderr - mean) * quarter.weights_N
  best = dataclasses.replace(whole, values_N=values_N)
  behind = statistics.difference(quarter, best.first(4))
  assert behind.mean / behind.stderr == pytest.approx(errors)
  assert len(merged.score(row, best).values_N) == scored


def test_a_stopped_trial_pays_for_no_gradient():
  merged, domain = _setting(2, batch_size=2)
  losses = [merged.score([w]).mean for w in ([1, 0], [0, 1])]
  better, worse = np.eye(2)[np.argsort(losses)].tolist()
  objective = Objective(
    merged,
    domain,
    use_gradients=True,
    incumbent=lambda: _params(domain, better),
  )
  assert GRADIENT not in objective(1, _params(domain, worse)).attrs
  assert GRADIENT in objective(2, _params(domain, better)).attrs


def test_derivatives_are_paid_for_as_forward_passes():
  for count, passes in ((2, 3), (3, 6)):
    merged, domain = _setting(count)
    objective = Objective(merged, domain, use_gradients=True)
    row = [1 / count] * count
    found = objective(1, _params(domain, row))
    assert found.tokens == passes * merged.last.weights_N.sum()


def test_trees_with_a_nan_have_no_derivative():
  merged, domain = _setting(3)
  assert merged.not_finite() == []
  broken = jax.tree.map(lambda x: x * np.nan, merged.trees[1])
  merged.trees = [merged.trees[0], broken, merged.trees[2]]
  assert merged.not_finite() == [1]


def test_the_sample_of_a_stopped_trial_does_not_depend_on_the_batch():
  found = []
  for batch_size in (1, 4, 16):
    merged, domain = _setting(2, batch_size=batch_size)
    losses = [merged.score([w]).mean for w in ([1, 0], [0, 1])]
    better, worse = np.eye(2)[np.argsort(losses)].tolist()
    score = merged.score([worse], merged.score([better]))
    assert len(score.values_N) == 4  # a quarter of 16
    found.append(score.values_N)
  for values_N in found[1:]:
    np.testing.assert_allclose(values_N, found[0], rtol=1e-5)


def _stopped_search(folder, restarts):
  """Trials of a search under a limit of tokens, restarted after each or not."""

  class Killed(Exception):
    pass

  def kill(trial):
    if restarts:
      raise Killed

  budget = 12
  for _ in range(budget):
    merged, domain = _setting(3, batch_size=1)
    method = SEARCH_METHODS["gp_hedge"]
    knobs = method.knobs(acquisitions=("ei", "ucb"))
    searched = WeightSearch(domain, method, knobs, 0, budget, True)
    study = weight_search.open_weight_study(
      folder / "study.journal", "search", searched, identity={}
    )
    try:
      ending = weight_search.run_weight_study(
        study,
        merged,
        searched,
        limits=Budget(tokens=5 * int(merged.last.weights_N.sum())),
        on_trial=kill,
      )
    except Killed:
      continue
    return ending, [
      (t.number, t.state, t.params, t.user_attrs.get("tokens"), t.values)
      for t in study.trials
    ]
  raise AssertionError("the limit of tokens has not ended the search")


def test_a_limit_of_tokens_ends_a_restarted_search_at_the_same_trial(tmp_path):
  for name in ("once", "often"):
    (tmp_path / name).mkdir()
  once = _stopped_search(tmp_path / "once", restarts=False)
  assert once[0] == "tokens"
  assert any(trial[1].name == "PRUNED" for trial in once[1])
  assert _stopped_search(tmp_path / "often", restarts=True) == once
