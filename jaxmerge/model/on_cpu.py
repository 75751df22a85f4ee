"""Attention and projections as XLA:CPU computes them fastest.

Each has a backward pass of its own, so that none has a forward mode: slopes
(`jax.jvp`) are for the plain forms.

B batch, L positions, H query heads, G key/value heads, R = H / G, S head size,
D width, F outputs, N rows = B * L, C pairs (sequence, key/value head) of a
chunk, Q queries of a block, E keys up to its end.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_BLOCKS = 4  # of queries at most: each is code of its own
_SHORTEST = 64
# Scores that stay in the L2 cache, and pairs whose products cost few calls.
_SCORES, _PAIRS = 2**17, 2
_FORBIDDEN = -1e30  # not -inf: exp(-inf - -inf) is NaN


def blocked_attention(
  query_BxLxHxS: jax.Array,
  key_BxLxGxS: jax.Array,
  value_BxLxGxS: jax.Array,
  segments_BxL: jax.Array | None = None,
) -> jax.Array:
  """Causal softmax(query key^T / sqrt(S)) value, within segments if given.

  A block of queries meets the keys up to its own end, and the backward pass
  computes the scores anew from their logsumexp (2205.14135).
  """
  batch, length, heads, size = query_BxLxHxS.shape
  groups = key_BxLxGxS.shape[2]
  pairs = batch * groups
  scores = heads // groups * length * max(e - s for s, e in _blocks(length))
  is_small = _PAIRS * scores <= _SCORES
  chunk = _PAIRS if is_small and pairs % _PAIRS == 0 else 1

  def chunks(x_BxLxXxS: jax.Array) -> jax.Array:
    each = x_BxLxXxS.reshape(batch, length, groups, -1, size)
    return each.transpose(0, 2, 3, 1, 4).reshape(
      pairs // chunk, chunk, -1, length, size
    )

  inputs = (
    chunks(query_BxLxHxS),
    chunks(key_BxLxGxS)[:, :, 0],
    chunks(value_BxLxGxS)[:, :, 0],
  )
  if segments_BxL is None:
    y = _attend(*inputs, None)
  else:
    segments = jnp.repeat(segments_BxL, groups, axis=0)
    y = _attend(*inputs, segments.reshape(pairs // chunk, chunk, length))
  y = y.reshape(batch, groups, heads // groups, length, size)
  return y.transpose(0, 3, 1, 2, 4).reshape(query_BxLxHxS.shape)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
  count = min(_BLOCKS, -(-length // _SHORTEST))
  block = -(-length // count)
  for start in range(0, length, block):
    yield start, min(start + block, length)


def _scores(
  query_CxRxQxS: jax.Array,
  key_CxExS: jax.Array,
  segments_CxL: jax.Array | None,
) -> jax.Array:
  """float32[C, R, Q, E]; the queries are the last of the keys' positions."""
  queries, keys = query_CxRxQxS.shape[2], key_CxExS.shape[1]
  scores = jnp.einsum(
    "crqs,ces->crqe",
    query_CxRxQxS * query_CxRxQxS.shape[-1] ** -0.5,
    key_CxExS,
    preferred_element_type=jnp.float32,
  )
  start = keys - queries
  seen = jnp.asarray(np.tri(queries, keys, start, dtype=bool))
  if segments_CxL is not None:
    of_key = segments_CxL[:, None, None, :keys]
    seen = seen & (segments_CxL[:, None, start:keys, None] == of_key)
  return jnp.where(seen, scores, _FORBIDDEN)


@jax.custom_vjp
def _attend(query: Any, key: Any, value: Any, segments: Any) -> jax.Array:
  """Over chunks, one after another: [chunks, C, ...] of each."""
  return _attend_forward(query, key, value, segments)[0]


def _attend_forward(
  query: Any, key: Any, value: Any, segments: Any
) -> tuple[jax.Array, tuple[Any, ...]]:
  def chunk(inputs: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    query_CxRxLxS, key_CxLxS, value_CxLxS, segments_CxL = inputs
    outs, normalisers = [], []
    for start, end in _blocks(key_CxLxS.shape[1]):
      scores = _scores(
        query_CxRxLxS[:, :, start:end], key_CxLxS[:, :end], segments_CxL
      )
      highest = jnp.max(scores, axis=-1, keepdims=True)
      weights = jnp.exp(scores - highest)
      total = jnp.sum(weights, axis=-1, keepdims=True)
      out = jnp.einsum(
        "crqe,ces->crqs",
        weights.astype(value_CxLxS.dtype),
        value_CxLxS[:, :end],
        preferred_element_type=jnp.float32,
      )
      outs.append((out / total).astype(query_CxRxLxS.dtype))
      normalisers.append(highest + jnp.log(total))
    return jnp.concatenate(outs, 2), jnp.concatenate(normalisers, 2)

  out, normaliser = lax.map(chunk, (query, key, value, segments))
  return out, (query, key, value, segments, out, normaliser)


def _attend_backward(
  saved: tuple[Any, ...], slope: jax.Array
) -> tuple[jax.Array | None, ...]:
  def chunk(inputs: tuple[Any, ...]) -> tuple[jax.Array, ...]:
    query, key, value, segments, out, normaliser, slope = inputs
    scale = query.shape[-1] ** -0.5
    f32 = jnp.float32
    # sum_e p_e dp_e = out . d_out (2205.14135, appendix B.4)
    mean = jnp.sum(out.astype(f32) * slope.astype(f32), -1, keepdims=True)
    of_query = []
    of_key = jnp.zeros(key.shape, f32)
    of_value = jnp.zeros(value.shape, f32)
    for start, end in _blocks(key.shape[1]):
      q, dy = query[:, :, start:end], slope[:, :, start:end]
      k, v = key[:, :end], value[:, :end]
      p = jnp.exp(_scores(q, k, segments) - normaliser[:, :, start:end])
      dp = jnp.einsum("crqs,ces->crqe", dy, v, preferred_element_type=f32)
      ds = (p * (dp - mean[:, :, start:end]) * scale).astype(q.dtype)
      of_query.append(
        jnp.einsum("crqe,ces->crqs", ds, k, preferred_element_type=f32)
      )
      of_key = of_key.at[:, :end].add(
        jnp.einsum("crqe,crqs->ces", ds, q, preferred_element_type=f32)
      )
      of_value = of_value.at[:, :end].add(
        jnp.einsum(
          "crqe,crqs->ces", p.astype(dy.dtype), dy, preferred_element_type=f32
        )
      )
    slopes = (jnp.concatenate(of_query, 2), of_key, of_value)
    return tuple(x.astype(query.dtype) for x in slopes)

  return (*lax.map(chunk, (*saved, slope)), None)


_attend.defvjp(_attend_forward, _attend_backward)


@jax.custom_vjp
def project(x_NxD: jax.Array, kernel_DxF: jax.Array) -> jax.Array:
  """x kernel; the kernel's gradient is computed as x^T dy, in its own order.

  Over flattened rows, because XLA:CPU has one fast product, of two matrices.
  """
  return x_NxD @ kernel_DxF


def _project_forward(
  x_NxD: jax.Array, kernel_DxF: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return x_NxD @ kernel_DxF, (x_NxD, kernel_DxF)


def _project_backward(
  saved: tuple[jax.Array, jax.Array], slope_NxF: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x_NxD, kernel_DxF = saved
  return slope_NxF @ kernel_DxF.T, x_NxD.T @ slope_NxF


project.defvjp(_project_forward, _project_backward)
