"""The programme in the weights, against SciPy and simulated documents.

G groups, K checkpoints, C documents, P rows of a partition.
"""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.optimize

from jaxmerge.errors import InputError
from jaxmerge.simplex.quadratic import (
  RIDGES,
  Precision,
  Quadratic,
  Region,
  choose,
  minimise,
  precision,
  residual,
)


def _simplex(k):
  return Region((0.0,) * k, 1.0)


def _wide(k):
  return Region((-1.0,) * k, 2.0)


def _model(seed, g, k, slope=0.1, documents=12, spread=0.5):
  """A model at lawa; `spread` is that of documents, in units of `slope`."""
  rng = np.random.default_rng(seed)
  root = rng.normal(size=(g * k, 3 * g * k)) * rng.uniform(0.3, 1.5, (g * k, 1))
  keep = np.arange(g * k) % k < k - 1
  curvature = root @ root.T / (3 * g * k) * np.outer(keep, keep)
  counts_C = rng.integers(50, 150, documents).astype(float)
  mean_GxK = slope * rng.normal(size=(g, k))
  own = slope * spread * rng.normal(size=(documents, g, k))
  gradients_CxGxK = counts_C[:, None, None] * (mean_GxK + own)
  gradients_CxGxK[..., -1] = 0
  weights_GxK = np.full((g, k), 1 / k)
  return Quadratic(weights_GxK, gradients_CxGxK, counts_C, curvature)


def _objective(model, weights_GxK, ridge):
  """The programme as it is written, by loops."""
  g, k = weights_GxK.shape
  d_GxK = weights_GxK - model.weights_GxK
  slope = sum(model.gradients_CxGxK) / sum(model.counts_C)
  loss = np.sum(slope * d_GxK)
  loss += d_GxK.ravel() @ model.curvature @ d_GxK.ravel() / 2
  if not ridge:
    return loss
  # The mean eigenvalue over rows of sum zero, by a projection onto them.
  centre = np.kron(np.eye(g), np.eye(k) - 1 / k)
  mean = np.trace(centre @ model.curvature @ centre) / (g * (k - 1))
  for column_G in d_GxK.T:
    for d in column_G:
      loss += ridge * mean / 2 * (d - np.mean(column_G)) ** 2
  return loss


def _scipy(model, region, ridge, partition=None):
  """The lowest objective by SLSQP, in the weights of rows (PxK)."""
  g, k = model.weights_GxK.shape
  rows = np.arange(g) if partition is None else np.array(partition)
  p = max(rows) + 1
  found = scipy.optimize.minimize(
    lambda w: _objective(model, w.reshape(p, k)[rows], ridge),
    np.full(p * k, 1 / k),
    method="SLSQP",
    bounds=list(zip(region.lowest_K, (region.highest,) * k, strict=True)) * p,
    constraints={"type": "eq", "fun": lambda w: w.reshape(p, k).sum(1) - 1},
    options={"maxiter": 1000, "ftol": 1e-11},
  )
  assert found.success
  return found.fun


@pytest.mark.parametrize("slope", [0.01, 3.0])
@pytest.mark.parametrize("region", [_simplex, _wide])
@pytest.mark.parametrize(
  ("g", "k", "ridge"), [(1, 2, 0.0), (1, 6, 0.1), (3, 3, 0.0), (4, 4, 0.1)]
)
def test_the_step_is_scipys(g, k, ridge, region, slope):
  model = _model(g * k, g, k, slope)
  step = minimise(model, region(k), ridge, range(g))
  lowest = _scipy(model, region(k), ridge)
  found = _objective(model, step.weights_GxK, ridge)
  assert found == pytest.approx(lowest, abs=1e-6)
  assert step.change == pytest.approx(
    _objective(model, step.weights_GxK, 0), abs=1e-12
  )
  assert step.residual < 1e-6
  off_bounds = np.min(step.weights_GxK) > region(k).lowest_K[0]
  assert off_bounds == (slope < 0.1)


def test_a_step_from_inside_another_region_keeps_to_its_bounds():
  # alpha = .3 and beta = .2 of a search.
  region = Region((-0.1, -0.1, 0.3), 1.2)
  model = _model(0, 2, 3, slope=2.0)
  step = minimise(model, region, 0.0, (0, 1))
  found = _objective(model, step.weights_GxK, 0)
  assert found == pytest.approx(_scipy(model, region, 0.0), abs=1e-6)
  assert np.all(step.weights_GxK >= region.lowest_K)
  assert np.any(step.weights_GxK == region.lowest_K)


def test_one_step_lands_on_the_optimum_of_a_quadratic_loss():
  rng = np.random.default_rng(1)
  best_GxK = np.array([[0.5, -0.3, 0.8], [0.1, 0.7, 0.2]])
  curvature = _model(1, 2, 3).curvature
  start_GxK = np.full((2, 3), 1 / 3)
  slope_GxK = (curvature @ (start_GxK - best_GxK).ravel()).reshape(2, 3)
  counts_C = np.array([7.0, 5.0, 9.0])
  noise_CxGxK = rng.normal(size=(3, 2, 3)) * [1, 1, 0]
  noise_CxGxK -= noise_CxGxK.mean(0)
  gradients_CxGxK = counts_C[:, None, None] * slope_GxK + noise_CxGxK
  model = Quadratic(start_GxK, gradients_CxGxK, counts_C, curvature)
  step = minimise(model, _wide(3), 0.0, (0, 1))
  np.testing.assert_allclose(step.weights_GxK, best_GxK, atol=1e-5)
  d_R = (best_GxK - start_GxK).ravel()
  assert step.change == pytest.approx(-d_R @ curvature @ d_R / 2, rel=1e-6)


def test_equal_checkpoints_share_what_one_of_them_would_get():
  one = _model(2, 2, 3, slope=0.02)
  # The first checkpoint twice: singular, with slopes as float32 leaves them.
  twice = np.array([0, 0, 1, 2])
  index = np.concatenate([twice, 3 + twice])
  gradients_CxGxK = one.gradients_CxGxK[..., twice]
  gradients_CxGxK[..., 0] += 1e-9 * one.counts_C[:, None]
  two = Quadratic(
    np.array([[1 / 6, 1 / 6, 1 / 3, 1 / 3]] * 2),
    gradients_CxGxK,
    one.counts_C,
    one.curvature[np.ix_(index, index)],
  )
  step = minimise(two, _wide(4), 0.0, (0, 1))
  alone = minimise(one, _wide(3), 0.0, (0, 1))
  np.testing.assert_allclose(
    np.add.reduceat(step.weights_GxK, [0, 2, 3], axis=1),
    alone.weights_GxK,
    atol=1e-4,
  )
  assert np.ptp(step.weights_GxK[:, :2], axis=1).max() < 0.01
  assert step.change == pytest.approx(alone.change, rel=1e-6)


def test_checkpoints_that_are_all_equal_stay():
  model = Quadratic(
    np.full((2, 3), 1 / 3), np.zeros((4, 2, 3)), np.ones(4), np.zeros((6, 6))
  )
  step = minimise(model, _simplex(3), 0.0, (0, 1))
  np.testing.assert_allclose(step.weights_GxK, 1 / 3)
  assert step.residual == step.change == 0
  assert choose(model, _simplex(3), {"": (0, 1)}).gain == 0
  assert precision(model, _simplex(3), (0, 1)).excess == 0


@pytest.mark.parametrize("region", [_simplex, _wide])
def test_a_coarse_partition_is_the_problem_of_its_rows(region):
  partition = [0, 1, 0, 1, 2]
  model = _model(3, 5, 4)
  step = minimise(model, region(4), 0.0, partition)
  spread = np.kron(np.eye(3)[partition], np.eye(4))
  by_hand = Quadratic(
    np.full((3, 4), 1 / 4),
    (model.gradients_CxGxK.reshape(-1, 20) @ spread).reshape(-1, 3, 4),
    model.counts_C,
    spread.T @ model.curvature @ spread,
  )
  alone = minimise(by_hand, region(4), 0.0, range(3))
  np.testing.assert_allclose(
    step.weights_GxK, alone.weights_GxK[partition], atol=1e-6
  )
  ridge = minimise(model, region(4), 0.3, partition)
  np.testing.assert_array_equal(ridge.weights_GxK[0], ridge.weights_GxK[2])
  assert _objective(model, ridge.weights_GxK, 0.3) == pytest.approx(
    _scipy(model, region(4), 0.3, partition), abs=1e-6
  )


def test_a_ridge_pulls_groups_together_and_knows_no_scale():
  model = _model(4, 4, 3)
  apart = [
    np.ptp(minimise(model, _wide(3), r, range(4)).weights_GxK, axis=0).max()
    for r in (0.0, 0.1, 10.0, 1e3)
  ]
  assert apart[0] > apart[1] > apart[2] > apart[3]
  shared = minimise(model, _wide(3), 0.0, [0] * 4)
  strong = minimise(model, _wide(3), 1e3, range(4))
  np.testing.assert_allclose(strong.weights_GxK, shared.weights_GxK, atol=2e-3)
  louder = model._replace(
    gradients_CxGxK=8 * model.gradients_CxGxK, curvature=8 * model.curvature
  )
  np.testing.assert_allclose(
    minimise(louder, _simplex(3), 0.1, range(4)).weights_GxK,
    minimise(model, _simplex(3), 0.1, range(4)).weights_GxK,
    atol=1e-9,
  )


def test_a_ridge_about_other_weights_ends_at_the_optimum_from_anywhere():
  model = _model(6, 3, 4)
  first_GxK = model.weights_GxK
  for region in (_simplex(4), _wide(4)):
    best = minimise(model, region, 0.1, range(3))
    there_GxK = (first_GxK + best.weights_GxK) / 2
    slopes_R = model.curvature @ (there_GxK - first_GxK).ravel()
    moved = model._replace(
      weights_GxK=there_GxK,
      gradients_CxGxK=model.gradients_CxGxK
      + np.outer(model.counts_C, slopes_R).reshape(model.gradients_CxGxK.shape),
    )
    again = minimise(moved, region, 0.1, range(3), first_GxK)
    np.testing.assert_allclose(again.weights_GxK, best.weights_GxK, atol=1e-6)
    assert again.residual < 1e-6
    before = model.change(there_GxK)
    assert again.change == pytest.approx(best.change - before, abs=1e-7)
    # A ridge about where it stands lets groups go further apart.
    loose = minimise(moved, region, 0.1, range(3))
    apart, further = (
      np.ptp(x.weights_GxK, axis=0).sum() for x in (again, loose)
    )
    assert further > 1.01 * apart


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  g=st.integers(1, 4),
  k=st.integers(2, 5),
  slope=st.sampled_from([1e-4, 0.03, 10.0]),
  ridge=st.sampled_from(RIDGES),
  is_wide=st.booleans(),
)
def test_a_step_is_allowed_and_never_worse_than_none(
  seed, g, k, slope, ridge, is_wide
):
  rng = np.random.default_rng(seed)
  region = _wide(k) if is_wide else _simplex(k)
  start_GxK = rng.dirichlet(np.full(k, 0.5), g)
  model = _model(seed, g, k, slope)._replace(weights_GxK=start_GxK)
  partition = rng.integers(0, 2, g)
  partition = np.unique(partition, return_inverse=True)[1]
  step = minimise(model, region, ridge, partition.tolist())
  np.testing.assert_allclose(step.weights_GxK.sum(1), 1, atol=1e-9)
  assert np.all(step.weights_GxK >= region.lowest_K)
  assert np.all(step.weights_GxK <= region.highest)
  assert _objective(model, step.weights_GxK, ridge) <= 1e-12
  assert step.change <= 1e-12
  assert step.residual <= 1e-5 * max(slope, 1)


def test_the_residual_is_zero_at_the_optimum_alone():
  model = _model(5, 3, 4, slope=0.3)
  best = minimise(model, _simplex(4), 0.0, range(3))
  assert residual(model, best.weights_GxK, _simplex(4)) < 1e-6
  lawa = residual(model, model.weights_GxK, _simplex(4))
  slope_GxK = model.gradient_GxK
  assert lawa == pytest.approx(np.ptp(slope_GxK, axis=1).max() / 2)
  near_GxK = 0.9 * best.weights_GxK + 0.1 * model.weights_GxK
  assert 1e-4 < residual(model, near_GxK, _simplex(4)) < lawa
  # Where groups must share their weights, only their common slope counts.
  shared = minimise(model, _simplex(4), 0.0, [0] * 3).weights_GxK
  assert residual(model, shared, _simplex(4), [0] * 3) < 1e-6
  assert residual(model, shared, _simplex(4)) > 1e-3
  ridge = minimise(model, _simplex(4), 0.5, range(3)).weights_GxK
  assert residual(model, ridge, _simplex(4), ridge=0.5) < 1e-6
  assert residual(model, ridge, _simplex(4)) > 1e-3


def test_many_groups_are_chosen_where_documents_agree_on_them():
  partitions = {"shared": [0] * 5, "pairs": [0, 0, 1, 1, 2], "own": range(5)}
  clear = choose(_model(6, 5, 4, slope=0.05, spread=0.1), _wide(4), partitions)
  assert clear.partition == "own"
  assert 0.5 * -clear.change < clear.gain <= -clear.change
  noisy = _model(6, 5, 4, slope=0.05, spread=20.0)
  picked = choose(noisy, _wide(4), partitions)
  free = minimise(noisy, _wide(4), 0.0, range(5))
  assert picked.gain < -free.change / 4


def test_the_gain_is_that_of_documents_left_out():
  model = _model(7, 2, 3, slope=0.05, documents=5)
  gain = 0.0
  for c in range(5):
    rest = np.arange(5) != c
    others = model._replace(
      gradients_CxGxK=model.gradients_CxGxK[rest],
      counts_C=model.counts_C[rest],
    )
    d_GxK = minimise(others, _wide(3), 0.1, (0, 1)).weights_GxK - 1 / 3
    gain -= np.sum(model.gradients_CxGxK[c] * d_GxK)
    bend = d_GxK.ravel() @ model.curvature @ d_GxK.ravel() / 2
    gain -= model.counts_C[c] * bend
  found = choose(model, _wide(3), {"own": (0, 1)}, [0.1])
  assert found.gain == pytest.approx(gain / model.counts_C.sum())
  step = minimise(model, _wide(3), 0.1, (0, 1))
  np.testing.assert_array_equal(found.weights_GxK, step.weights_GxK)
  assert found[1:3] == (0.1, "own")
  assert found[4:] == step[1:]


def test_weights_stay_where_nothing_is_gained_on_documents_left_out():
  model = _model(8, 2, 3, slope=0.0)
  rng = np.random.default_rng(8)
  noise_CxGxK = rng.normal(size=(12, 2, 3)) * [1, 1, 0]
  noise_CxGxK -= noise_CxGxK.mean(0)
  model = model._replace(gradients_CxGxK=noise_CxGxK)
  found = choose(model, _simplex(3), {"shared": (0, 0), "own": (0, 1)})
  np.testing.assert_array_equal(found.weights_GxK, model.weights_GxK)
  assert found[1:5] == (max(RIDGES), "shared", 0.0, 0.0)


@pytest.mark.parametrize(
  ("ridge", "partition"), [(0.0, (0, 1, 2)), (0.3, (0, 1, 1))]
)
def test_the_precision_is_what_other_documents_would_show(ridge, partition):
  rng = np.random.default_rng(9)
  population = _model(9, 3, 3, slope=0.02, documents=200, spread=1.0)
  best_GxK = minimise(population, _wide(3), ridge, partition).weights_GxK
  # At the optimum: a document's slope there is its own and the model's bend.
  d_R = (best_GxK - population.weights_GxK).ravel()
  bend_GxK = (population.curvature @ d_R).reshape(3, 3)
  there = population._replace(
    weights_GxK=best_GxK,
    gradients_CxGxK=population.gradients_CxGxK
    + population.counts_C[:, None, None] * bend_GxK,
  )
  found = precision(there, _wide(3), partition, ridge)
  weights, excess = [], []
  for _ in range(1000):
    drawn = rng.integers(0, 200, 200)
    again = population._replace(
      gradients_CxGxK=population.gradients_CxGxK[drawn],
      counts_C=population.counts_C[drawn],
    )
    weights.append(minimise(again, _wide(3), ridge, partition).weights_GxK)
    d_R = (weights[-1] - best_GxK).ravel()
    excess.append(d_R @ population.curvature @ d_R / 2)
  np.testing.assert_allclose(
    found.stderr_GxK, np.std(weights, axis=0), rtol=0.1
  )
  assert found.excess == pytest.approx(np.mean(excess), rel=0.1)


def test_a_weight_held_at_a_bound_has_no_error():
  model = _model(10, 2, 4, slope=0.3)
  best = minimise(model, _simplex(4), 0.0, (0, 1))
  d_R = (best.weights_GxK - model.weights_GxK).ravel()
  bend_GxK = (model.curvature @ d_R).reshape(2, 4)
  there = model._replace(
    weights_GxK=best.weights_GxK,
    gradients_CxGxK=model.gradients_CxGxK
    + model.counts_C[:, None, None] * bend_GxK,
  )
  held = precision(there, _simplex(4), (0, 1))
  is_held = best.weights_GxK == 0
  assert 0 < is_held.sum() < 6
  np.testing.assert_array_equal(
    held.stderr_GxK == 0, is_held | ((~is_held).sum(1, keepdims=True) == 1)
  )
  assert held.excess < precision(there, _wide(4), (0, 1)).excess


def test_more_documents_gain_what_is_left_of_the_excess():
  found = Precision(np.zeros((1, 2)), 8e-4)
  assert found.gain(2) == pytest.approx(4e-4)
  assert found.gain(4) == pytest.approx(6e-4)


def _broken(change):
  def broken(model):
    arrays = {name: np.array(value) for name, value in model._asdict().items()}
    change(arrays)
    return Quadratic(**arrays)

  return broken


@pytest.mark.parametrize(
  ("break_it", "said"),
  [
    (
      lambda a: a["gradients_CxGxK"].__setitem__((0, 0, 0), np.nan),
      "gradients must be finite",
    ),
    (
      lambda a: a["curvature"].__setitem__((0, 0), np.inf),
      "curvature must be finite",
    ),
    (lambda a: a["curvature"].__setitem__((0, 1), 9), "must be symmetric"),
    (lambda a: a["curvature"].__setitem__((0, 0), -9), "no eigenvalue below"),
    (lambda a: a["weights_GxK"].__setitem__((0, 0), 0.5), "sum to one"),
    (lambda a: a["weights_GxK"].__setitem__(0, [2, -1, 0]), "must be from"),
    (lambda a: a["counts_C"].__setitem__(0, 0), "needs tokens"),
    (lambda a: a.update(counts_C=a["counts_C"][1:]), "gradients must be"),
    (lambda a: a.update(weights_GxK=np.ones((2, 1))), "two checkpoints"),
  ],
)
def test_a_model_that_makes_no_sense_is_refused(break_it, said):
  model = _broken(break_it)(_model(11, 2, 3))
  with pytest.raises(InputError, match=said):
    minimise(model, _simplex(3), 0.0, (0, 1))
  with pytest.raises(InputError, match=said):
    choose(model, _simplex(3), {"own": (0, 1)})
  with pytest.raises(InputError, match=said):
    precision(model, _simplex(3), (0, 1))
  with pytest.raises(InputError, match=said):
    residual(model, np.full((2, 3), 1 / 3), _simplex(3))


def test_every_problem_is_told_at_once():
  model = _model(12, 2, 3)._replace(curvature=np.zeros((2, 2)))
  with pytest.raises(InputError) as told:
    choose(model, Region((0.0, 0.0), 1.0), {"odd": (0, 2)}, [-1.0, np.nan])
  assert len(told.value.problems) == 5
  with pytest.raises(InputError, match="a partition and a ridge"):
    choose(_model(12, 2, 3), _simplex(3), {}, [])
  alone = _model(12, 2, 3, documents=1)
  with pytest.raises(InputError, match="at least two documents"):
    choose(alone, _simplex(3), {"own": (0, 1)})
  with pytest.raises(InputError, match="at least two documents"):
    precision(alone, _simplex(3), (0, 1))
