"""The Splash kernel, interpreted on CPU devices, against plain attention."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.model import splash
from tests.helpers import with_devices

AXES = ("replica", "data", "fsdp", "tensor", "context")


def mesh_of(*shape: int) -> jax.sharding.Mesh:
  devices = np.array(jax.devices()[: np.prod(shape)])
  return jax.sharding.Mesh(devices.reshape(shape), AXES)


def plain(query, key, value, segments):
  same = segments[:, None, :, None] == segments[:, None, None, :]
  return jax.nn.dot_product_attention(
    query, key, value, mask=same, is_causal=True
  )


def of(attention, inputs):
  """What an attention gives, and its gradients for a weighted sum."""
  *projections, segments, weights = inputs

  def weighted(*projections):
    out = attention(*projections, segments)
    return jnp.sum(out * weights), out

  gradients, out = jax.jit(jax.grad(weighted, argnums=(0, 1, 2), has_aux=True))(
    *projections
  )
  return out, *gradients


def inputs_of(batch, length, heads, groups, size=8):
  draw = np.random.default_rng(0)
  sizes = (heads, groups, groups, heads)
  *projections, weights = (
    jnp.asarray(draw.normal(size=(batch, length, n, size)), jnp.float32)
    for n in sizes
  )
  segments = np.sort(draw.integers(0, 3, (batch, length)), axis=1)
  return *projections, jnp.asarray(segments, jnp.int32), weights


def check_equal(mesh, inputs):
  found = of(lambda *args: splash.splash_attention(*args, mesh), inputs)
  for mine, expected in zip(found, of(plain, inputs)):
    np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_one_device_gives_plain_attention_and_its_gradients():
  inputs = inputs_of(batch=1, length=128, heads=4, groups=2)
  check_equal(mesh_of(1, 1, 1, 1, 1), inputs)


def test_without_segments_a_sequence_is_one_document():
  inputs = inputs_of(batch=1, length=128, heads=2, groups=2)
  *projections, segments, _ = inputs
  run = lambda ids: splash.splash_attention(
    *projections, ids, mesh_of(1, 1, 1, 1, 1)
  )
  whole = run(None)
  np.testing.assert_array_equal(whole, run(jnp.zeros_like(segments)))
  assert np.abs(whole - run(segments)).max() > 0.1


def test_sequences_heads_and_positions_are_spread():
  """In a process of eight devices; one KV head is repeated for two."""
  code = (
    "from tests.model import test_splash as t;"
    "inputs = t.inputs_of(batch=2, length=256, heads=4, groups=1);"
    "t.check_equal(t.mesh_of(1, 1, 2, 2, 2), inputs)"
  )
  subprocess.run(
    [sys.executable, "-c", code],
    env=with_devices(8),
    check=True,
  )


def test_blocks_divide_any_multiple_of_128():
  blocks = {length: splash._block(length, 512) for length in (128, 1024, 1408)}
  assert blocks == {128: 128, 1024: 512, 1408: 128}
