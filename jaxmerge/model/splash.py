"""Causal attention on TPUs by the Splash kernel, which stores no scores.

The kernel knows nothing of meshes: each device runs it on its own sequences
(BATCH_AXES), heads ("tensor") and positions ("context"). Of positions only the
queries are spread; keys and values are gathered first.

B batch, L positions, T positions of a device's queries, H query heads, G key
and value heads, S head size.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmerge.model.attention import SPLASH
from jaxmerge.parallel.rules import BATCH_AXES

# The kernel's tiles are this wide.
LANES = 128
# Large blocks read keys less often; these fit the 16 MiB that a kernel has on
# the smallest chips, with heads of up to 256.
_LARGEST_BLOCK = 1024
_LARGEST_TILE = 512


def _block(length: int, largest: int) -> int:
  """The largest divisor of a length that is a multiple of LANES."""
  sizes = range(LANES, min(length, largest) + 1, LANES)
  return max(size for size in sizes if length % size == 0)


@functools.lru_cache(maxsize=8)
def _kernel(heads: int, length: int, context: int, interpret: bool) -> Any:
  """The kernel of a device's heads, its mask laid out for all positions.

  One kernel for all traces, so that JAX traces its body once.
  """
  queries = _block(length // context, _LARGEST_BLOCK)
  keys = _block(length, _LARGEST_BLOCK)
  tile = _block(keys, _LARGEST_TILE)
  # One pass for all gradients writes a query gradient for every block of keys:
  # worth it where there is one.
  fused = keys == length
  sizes = splash.BlockSizes(
    block_q=queries,
    block_kv=keys,
    block_kv_compute=tile,
    block_q_dkv=queries,
    block_kv_dkv=keys,
    block_kv_dkv_compute=tile,
    block_q_dq=None if fused else queries,
    block_kv_dq=None if fused else keys,
    use_fused_bwd_kernel=fused,
  )
  mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
  with jax.ensure_compile_time_eval():  # constants, whoever traces first
    return splash.make_splash_mha(
      mask,
      block_sizes=sizes,
      head_shards=1,  # its heads are the same on every device
      q_seq_shards=context,
      residual_checkpoint_name=SPLASH,
      interpret=interpret,
    )


def splash_attention(
  query_BxLxHxS: jax.Array,
  key_BxLxGxS: jax.Array,
  value_BxLxGxS: jax.Array,
  segments_BxL: jax.Array | None,
  mesh: Mesh,
) -> jax.Array:
  """softmax(q k^T / sqrt(S)) v over earlier positions of the same segment.

  Key and value heads that the tensor axis does not divide are repeated until it
  does. On CPU devices the kernel is interpreted, which is slow: for tests.

  Args:
    mesh: its context axis times 128 divides L, its tensor axis divides H.

  Returns:
    [B, L, H, S] in the dtype of the query, sharded as it.
  """
  _, length, heads, size = query_BxLxHxS.shape
  context, tensor = mesh.shape["context"], mesh.shape["tensor"]
  groups = key_BxLxGxS.shape[2]
  repeats = math.lcm(groups, tensor) // groups
  if repeats > 1:
    key_BxLxGxS = jnp.repeat(key_BxLxGxS, repeats, axis=2)
    value_BxLxGxS = jnp.repeat(value_BxLxGxS, repeats, axis=2)
  kernel = _kernel(
    heads // tensor,
    length,
    context,
    interpret=mesh.devices.flat[0].platform == "cpu",
  )
  spread = P(BATCH_AXES, "context", "tensor", None)
  whole = P(BATCH_AXES, None, "tensor", None)
  of_mask = kernel.manual_sharding_spec(
    NamedSharding(mesh, P(None, "context" if context > 1 else None))
  )
  of_segments = None if segments_BxL is None else P(BATCH_AXES, "context")
  of_all_segments = None if segments_BxL is None else P(BATCH_AXES, None)

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(of_mask, spread, whole, whole, of_segments, of_all_segments),
    out_specs=spread,
    check_vma=False,  # pallas_call has no rule for it
  )
  def on_device(
    kernel: Callable[..., Any],
    query_BxTxHxS: jax.Array,
    key_BxLxGxS: jax.Array,
    value_BxLxGxS: jax.Array,
    segments_BxT: jax.Array | None,
    segments_BxL: jax.Array | None,
  ) -> jax.Array:
    ids = None
    if segments_BxT is not None and segments_BxL is not None:
      ids = splash.SegmentIds(q=segments_BxT, kv=segments_BxL)
    scaled_BxTxHxS = query_BxTxHxS.astype(jnp.float32) * size**-0.5
    out_BxHxTxS = jax.vmap(kernel)(
      scaled_BxTxHxS.astype(query_BxTxHxS.dtype).swapaxes(1, 2),
      key_BxLxGxS.swapaxes(1, 2),
      value_BxLxGxS.swapaxes(1, 2),
      ids,
    )
    return out_BxHxTxS.swapaxes(1, 2)

  return on_device(
    kernel,
    query_BxLxHxS,
    key_BxLxGxS,
    value_BxLxGxS,
    segments_BxL,
    segments_BxL,
  )
