"""The head's loss with its own backward pass equals the plain one.

B batch, L positions, D width, P padded vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive

from jaxmerge.model.decoder import _POLICIES
from jaxmerge.model.head import head_losses, plain_losses
from tests.helpers import decoder

BATCH, LENGTH, WIDTH, VOCAB, PADDED = 2, 5, 8, 11, 16


def inputs(dtype):
  random = np.random.default_rng(0)
  x_BxLxD = random.normal(size=(BATCH, LENGTH, WIDTH))
  kernel_DxP = random.normal(size=(WIDTH, PADDED))
  targets_BxL = random.integers(VOCAB, size=(BATCH, LENGTH))
  targets_BxL[0, :2] = 0, VOCAB - 1
  return (
    jnp.asarray(x_BxLxD, dtype),
    jnp.asarray(kernel_DxP, jnp.float32),
    jnp.asarray(targets_BxL, jnp.int32),
  )


def config(cap=0.0):
  return decoder(
    vocab_size=VOCAB,
    vocab_multiple=PADDED,
    hidden_size=WIDTH,
    logit_softcap=cap,
  )


def plain(config, x, kernel, targets):
  logits = (x.astype(jnp.float32) @ kernel)[..., :VOCAB]
  if config.logit_softcap:
    logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
  normalisers = jax.nn.logsumexp(logits, axis=-1)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return normalisers - chosen, normalisers


def slopes(losses, dtype, cap):
  """Of uneven sums of both results; columns of padding included."""
  x, kernel, targets = inputs(dtype)
  weights = jnp.arange(1.0, LENGTH + 1) / LENGTH

  def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
    found, normalisers = losses(config(cap), x, kernel, targets)
    return jnp.sum(weights * found) + 0.1 * jnp.sum(normalisers**2)

  return jax.jit(jax.grad(total, argnums=(0, 1)))(x, kernel)


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize(
  ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)]
)
@pytest.mark.parametrize("losses", [head_losses, plain_losses])
def test_losses_and_slopes_are_those_of_the_plain_form(
  losses, dtype, tolerance, cap
):
  found = losses(config(cap), *inputs(dtype))
  np.testing.assert_allclose(
    found, plain(config(cap), *inputs(dtype)), rtol=tolerance, atol=tolerance
  )
  for mine, right in zip(slopes(losses, dtype, cap), slopes(plain, dtype, cap)):
    assert mine.dtype == right.dtype
    np.testing.assert_allclose(
      mine.astype(jnp.float32),
      right.astype(jnp.float32),
      rtol=tolerance,
      atol=2 * tolerance,
    )


def test_a_cap_has_no_slope_where_the_share_of_a_target_underflows():
  """Logits at -cap and cap: exp(-2 cap) is 0, and tanh is flat at both."""
  x = jnp.ones((1, 1))
  kernel = jnp.full((1, PADDED), 1e6).at[0, 0].set(-1e6)
  wide = decoder(vocab_size=VOCAB, vocab_multiple=PADDED, logit_softcap=100.0)

  def loss(kernel: jax.Array) -> jax.Array:
    return jnp.sum(head_losses(wide, x, kernel, jnp.zeros(1, jnp.int32))[0])

  assert loss(kernel) > 200
  np.testing.assert_array_equal(jax.grad(loss)(kernel), 0)


def test_no_product_mixes_float32_with_bfloat16():
  x, kernel, targets = inputs("bfloat16")

  def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.sum(head_losses(config(), x, kernel, targets)[0])

  text = jax.jit(jax.grad(total, argnums=(0, 1))).lower(x, kernel).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  assert len(products) == 3
  for line in products:
    operands = line.rpartition(" : (")[2].partition(") -> ")[0]
    assert operands.count("xbf16>") == 2, line


@pytest.mark.parametrize(
  ("name", "kept"),
  [("dot_product_attention_fwd_wrapper", True), ("exp", False)],
)
def test_dots_keeps_what_a_fused_attention_gives(name: str, kept: bool):
  policy = _POLICIES["dots"]
  assert policy is not None
  assert policy(Primitive(name)) is kept
