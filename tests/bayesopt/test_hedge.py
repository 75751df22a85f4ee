import numpy as np

from jaxmerge.bayesopt.gp import hedge


def test_probabilities_are_the_softmax_and_survive_large_gains():
  p_J = hedge.probabilities(np.log([1.0, 2.0, 5.0]))
  np.testing.assert_allclose(p_J, [0.125, 0.25, 0.625])
  np.testing.assert_allclose(
    hedge.probabilities(np.array([1e6, 1e6])), [0.5, 0.5]
  )


def test_draws_follow_the_probabilities():
  gains_J = np.log([1.0, 2.0, 5.0])
  rng = np.random.default_rng(0)
  first = [hedge.preference(gains_J, rng)[0] for _ in range(4000)]
  np.testing.assert_allclose(
    np.bincount(first) / 4000, [0.125, 0.25, 0.625], atol=0.03
  )


def test_preference_lists_the_others_likeliest_first():
  gains_J = np.array([0.0, 3.0, 1.0])
  for seed in range(20):
    order = hedge.preference(gains_J, np.random.default_rng(seed))
    assert sorted(order) == [0, 1, 2]
    assert order[1:] == [j for j in (1, 2, 0) if j != order[0]]
