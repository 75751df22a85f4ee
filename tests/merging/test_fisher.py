"""Fisher information and averages: closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmerge.errors import InputError
from jaxmerge.merging import average
from jaxmerge.merging.method import METHODS
from jaxmerge.merging.methods.fisher import (
  FisherKnobs,
  diagonal_fisher,
  fisher_average,
)
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.model.loss import token_losses
from tests.helpers import decoder, random_params

CONFIG = decoder(
  vocab_size=12,
  hidden_size=8,
  num_attention_heads=2,
  num_key_value_heads=1,
  intermediate_size=8,
  vocab_multiple=4,
  tie_word_embeddings=True,
)
GRAPH, _ = abstract_decoder(CONFIG)
RNG = np.random.default_rng(0)
TOKENS_NxL1 = RNG.integers(0, 12, size=(6, 5)).astype(np.int32)
MASK_NxL = np.arange(4) < RNG.integers(2, 5, size=(6, 1))


class _Softmax(nnx.Module):
  """Logits that do not depend on the tokens: a closed form."""

  def __init__(self):
    self.logits = nnx.Param(jnp.asarray([0.2, -0.4, 0.9]))

  def padded_logits(self, tokens_BxL):
    return jnp.broadcast_to(self.logits[...], (*tokens_BxL.shape, 3))


EMPIRICAL = FisherKnobs(fisher_labels="data")


def test_the_fisher_information_of_a_softmax():
  """Of L independent draws: L (p_i - p_i^2), by sampled labels."""
  graph, state = nnx.split(_Softmax(), nnx.Param)
  params = nnx.to_pure_dict(state)
  count, length = 4000, 3
  tokens = np.zeros((count, length + 1), np.int32)
  mask = np.ones((count, length), bool)
  found = diagonal_fisher(graph, params, tokens, mask, FisherKnobs(seed=0))[
    "logits"
  ]
  p = np.exp([0.2, -0.4, 0.9])
  p /= p.sum()
  np.testing.assert_allclose(found, length * (p - p**2), rtol=0.1)
  # With the data's labels, all zero: the squared sum of (1 or 0) - p.
  empirical = diagonal_fisher(graph, params, tokens, mask, EMPIRICAL)["logits"]
  expected = (length * (np.array([1, 0, 0]) - p)) ** 2
  np.testing.assert_allclose(empirical, expected, rtol=1e-3)


def test_the_empirical_fisher_is_the_mean_square_of_the_gradients():
  params = random_params(CONFIG)
  found = diagonal_fisher(GRAPH, params, TOKENS_NxL1, MASK_NxL, EMPIRICAL)

  @jax.jit
  @jax.grad
  def gradient(params, tokens_L1, mask_L):
    losses = token_losses(GRAPH, params, tokens_L1[None])
    return jnp.sum(jnp.where(mask_L, losses, 0.0))

  squares = [
    jax.tree.map(jnp.square, gradient(params, tokens_L1, mask_L))
    for tokens_L1, mask_L in zip(TOKENS_NxL1, MASK_NxL)
  ]
  expected = jax.tree.map(lambda *leaves: sum(leaves) / 6, *squares)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
    found,
    expected,
  )


def test_sampled_labels_are_seeded():
  params = random_params(CONFIG)
  first, again, other = (
    diagonal_fisher(
      GRAPH, params, TOKENS_NxL1, MASK_NxL, FisherKnobs(seed=seed)
    )
    for seed in (1, 1, 2)
  )
  same = jax.tree.map(lambda a, b: bool((a == b).all()), first, again)
  assert jax.tree.all(same)
  assert not np.array_equal(
    first["embed"]["embedding"], other["embed"]["embedding"]
  )


def test_fisher_average_of_quadratic_losses_is_their_minimum():
  """sum_i F_i (x - theta_i)^2 / 2 is lowest at the Fisher average."""
  trees = [{"x": RNG.normal(size=5).astype(np.float32)} for _ in range(3)]
  fishers = [{"x": RNG.uniform(1, 9, size=5).astype(np.float32)} for _ in trees]
  weights = np.array([0.2, 0.3, 0.5])
  found = np.float64(fisher_average(trees, fishers, weights.tolist())["x"])
  slope = sum(
    w * f["x"] * (found - t["x"]) for w, f, t in zip(weights, fishers, trees)
  )
  np.testing.assert_allclose(slope, 0, atol=1e-5)


def test_equal_or_vanishing_information_is_the_plain_average():
  trees = [{"x": RNG.normal(size=5).astype(np.float32)} for _ in range(2)]
  plain = average.weighted_average(trees, [0.3, 0.7])["x"]
  for value in (0.0, 4.0):
    fishers = [{"x": np.full(5, value, np.float32)}] * 2
    found = fisher_average(trees, fishers, [0.3, 0.7])["x"]
    np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_bad_weights():
  trees = [{"x": np.float32([1.0])}] * 2
  with pytest.raises(ValueError, match="shorter"):
    fisher_average(trees, trees, [1.0])
  for weights in ([2.0, -1.0], [0.0, 0.0]):
    with pytest.raises(InputError):
      METHODS["fisher"].usable(weights, None)
