"""The forms for CPUs against the plain ones, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.model import on_cpu
from jaxmerge.model.on_cpu import blocked_attention, project

RANDOM = np.random.default_rng(0)


def normal(*shape, dtype=jnp.float32):
  return jnp.asarray(RANDOM.standard_normal(shape), dtype)


def plain_attention(query, key, value, segments=None):
  mask = None
  if segments is not None:
    mask = segments[:, None, :, None] == segments[:, None, None, :]
  return jax.nn.dot_product_attention(
    query, key, value, mask=mask, is_causal=True
  )


def pull(function, arguments, slope):
  """The value, and the gradient of its product with a slope."""
  value, back = jax.vjp(function, *arguments)
  return value, back(jax.tree.map(lambda s, v: s.astype(v.dtype), slope, value))


def assert_equal(function, plain, arguments, slope, atol=1e-5, rtol=1e-7):
  found, expected = (
    jax.jit(pull, static_argnums=0)(form, arguments, slope)
    for form in (function, plain)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a, np.float32), np.asarray(b, np.float32), rtol, atol
    ),
    found,
    expected,
  )


def query_key_value(length, heads, groups, dtype=jnp.float32):
  return [normal(3, length, n, 8, dtype=dtype) for n in (heads, groups, groups)]


@pytest.mark.parametrize(
  ("length", "heads", "groups"),
  [(1, 4, 2), (5, 4, 2), (130, 4, 2), (257, 4, 2), (70, 3, 3), (70, 2, 1)],
)
def test_blocked_attention_is_attention(length, heads, groups):
  arguments = query_key_value(length, heads, groups)
  slope = normal(*arguments[0].shape)
  assert_equal(blocked_attention, plain_attention, arguments, slope)


@pytest.mark.parametrize("length", [5, 130])
def test_blocked_attention_keeps_to_its_segment(length):
  arguments = query_key_value(length, 4, 2)
  slope = normal(*arguments[0].shape)
  # One document, some that begin with a block of queries, and short ones.
  sizes = np.array([length, -(-length // 3), 2])
  segments = jnp.asarray(np.arange(length) // sizes[:, None], jnp.int32)

  def within(form):
    return lambda *qkv: form(*qkv, segments)

  assert_equal(
    within(blocked_attention), within(plain_attention), arguments, slope
  )
  without = blocked_attention(*arguments)
  assert np.abs(without - blocked_attention(*arguments, segments)).max() > 0.1


def test_blocked_attention_is_the_same_for_one_pair_at_a_time(monkeypatch):
  arguments = query_key_value(130, 4, 2)
  slope = normal(*arguments[0].shape)
  monkeypatch.setattr(on_cpu, "_SCORES", 0)
  assert_equal(blocked_attention, plain_attention, arguments, slope)


def test_scores_far_apart_neither_overflow_nor_lose_the_gradient():
  query, key, value = query_key_value(70, 2, 2)
  arguments = [200 * query, key, value]
  slope = normal(*query.shape)
  # Scores are 200 times larger, and so gradients, up to 50, round as much more.
  assert_equal(blocked_attention, plain_attention, arguments, slope, 1e-3, 1e-4)


def test_blocked_attention_of_bfloat16_is_as_near_as_the_plain_one():
  arguments = query_key_value(130, 4, 2, jnp.bfloat16)
  exact = plain_attention(*(x.astype(jnp.float32) for x in arguments))
  found = blocked_attention(*arguments)
  assert found.dtype == jnp.bfloat16
  slope = normal(*exact.shape)
  # Values of bfloat16 are 1/128 apart near 2.
  assert_equal(blocked_attention, plain_attention, arguments, slope, 0.1)
  error = np.abs(found.astype(jnp.float32) - exact).max()
  plain = plain_attention(*arguments).astype(jnp.float32)
  assert error < 1.5 * np.abs(plain - exact).max()


@pytest.mark.parametrize(
  ("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 0.05)]
)
def test_project_is_the_product(dtype, atol):
  arguments = [normal(7, 5, dtype=dtype), normal(5, 3, dtype=dtype)]
  slope = normal(7, 3)
  assert_equal(project, jnp.matmul, arguments, slope, atol)
