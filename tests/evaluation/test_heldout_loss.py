import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxmerge.data.heldout import HeldOut
from jaxmerge.evaluation.evaluators.heldout_loss import (
  HeldOutLoss,
  batch_losses,
)
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.model.loss import token_losses
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
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


@pytest.fixture(scope="module")
def split() -> HeldOut:
  return make_split()


def make_split() -> HeldOut:
  random = np.random.default_rng(0)
  tokens = random.integers(0, 40, size=(7, 9)).astype(np.int32)
  mask = np.arange(8) < random.integers(1, 9, size=(7, 1))
  return HeldOut(
    tokens_NxL1=tokens,
    mask_NxL=mask,
    document_N=np.int32([0, 0, 1, 1, 2, 3, 3]),
    bytes_N=mask.sum(1).astype(np.int32) * 2,
    document_ids=("a", "b", "c", "d"),
  )


def params(seed: int):
  return random_params(CONFIG, seed)


def test_sums_only_the_targets_that_count(split):
  tree = params(0)
  score = HeldOutLoss(GRAPH, make_mesh(), split, 4).score(tree)
  losses = np.asarray(token_losses(GRAPH, tree, split.tokens_NxL1))
  expected = (losses * split.mask_NxL).sum(1)
  np.testing.assert_allclose(score.values_N, expected, rtol=1e-6)
  assert score.weights_N.tolist() == split.mask_NxL.sum(1).tolist()
  mean = expected.sum() / split.mask_NxL.sum()
  assert np.isclose(score.mean, mean)
  bits = expected.sum() / np.log(2) / split.bytes_N.sum()
  assert np.isclose(score.extras["bits/byte"], bits)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
def test_the_batch_size_changes_nothing(split, batch_size):
  tree = params(0)
  whole = HeldOutLoss(GRAPH, make_mesh(), split, 7).score(tree)
  parts = HeldOutLoss(GRAPH, make_mesh(), split, batch_size).score(tree)
  np.testing.assert_allclose(parts.values_N, whole.values_N, rtol=1e-6)


def check_devices():
  tree, split = params(0), make_split()
  one = make_mesh(devices=jax.devices()[:1])
  alone = HeldOutLoss(GRAPH, one, split, 8).score(tree)
  for axes in ({}, {"fsdp": 2, "tensor": 2, "context": 2}):
    mesh = make_mesh(**axes)
    spread = jax.device_put(tree, shardings(tree, mesh))
    found = HeldOutLoss(GRAPH, mesh, split, 8).score(spread)
    difference_N = np.abs(found.values_N - alone.values_N)
    assert (difference_N <= 1e-5 * alone.weights_N).all(), axes
    assert abs(found.mean - alone.mean) <= 1e-6, axes


def test_eight_devices_give_what_one_does():
  flags = "--xla_force_host_platform_device_count=8"
  module = "tests.evaluation.test_heldout_loss"
  subprocess.run(
    [sys.executable, "-c", f"import {module} as t; t.check_devices()"],
    env={**os.environ, "XLA_FLAGS": flags},
    check=True,
  )


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_a_score_goes_on_from_an_earlier_one(split, batch_size):
  tree = params(0)
  heldout = HeldOutLoss(GRAPH, make_mesh(), split, batch_size)
  whole, part = heldout.score(tree), heldout.score(tree, 3)
  np.testing.assert_array_equal(part.values_N[:3], whole.values_N[:3])
  rest = heldout.extend(tree, part, 7)
  np.testing.assert_array_equal(rest.values_N, whole.values_N)
  assert part.tokens + rest.tokens == whole.tokens == split.mask_NxL.sum()
  assert heldout.extend(tree, rest, 7).tokens == 0


def test_padding_never_reaches_the_sum(split):
  """Not even a loss that is infinite where the mask is false."""
  tree = params(0)
  clean = HeldOutLoss(GRAPH, make_mesh(), split, 4).score(tree)
  tokens = split.tokens_NxL1.copy()
  tokens[:, 1:][~split.mask_NxL] = CONFIG.vocab_size  # a padded row: -inf
  dirty = split._replace(tokens_NxL1=tokens)
  score = HeldOutLoss(GRAPH, make_mesh(), dirty, 4).score(tree)
  np.testing.assert_array_equal(score.values_N, clean.values_N)


def test_one_compile_for_all_parameters(split):
  heldout = HeldOutLoss(GRAPH, make_mesh(), split, 5)
  before = batch_losses._cache_size()
  for seed in range(3):
    heldout.score(params(seed))
  assert batch_losses._cache_size() == before + 1


def test_slopes_and_gradients_are_those_of_the_plain_form(split):
  """Scores and gradients are computed in the fastest form, slopes in it not."""
  tree, tangent = params(0), params(1)
  mask = split.mask_NxL

  def sums(tree):
    losses = token_losses(GRAPH, tree, split.tokens_NxL1)
    return jax.numpy.where(mask, losses, 0.0).sum(axis=1)

  expected, slopes = jax.jit(lambda *at: jax.jvp(sums, at[:1], at[1:]))(
    tree, tangent
  )
  gradient = jax.jit(jax.grad(lambda tree: sums(tree).sum()))(tree)
  heldout = HeldOutLoss(GRAPH, make_mesh(), split, 4)
  of_slope, slopes_N = heldout.slope(tree, tangent)
  of_gradient, found = heldout.gradient(tree)
  for score in (of_slope, of_gradient, heldout.score(tree)):
    np.testing.assert_allclose(score.values_N, expected, rtol=1e-5)
  np.testing.assert_allclose(slopes_N, slopes, rtol=1e-4, atol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found,
    gradient,
  )
