"""Products with parameters that the mesh's fsdp axis shares out.

Each parameter is cast to the dtype of the computation and then gathered, right
before it is used; its gradient is summed over the devices in that dtype and
shared out at once. The compiler, left to itself, gathers and sums in float32,
which is twice the traffic and, for a head, gigabytes.

`gather` has no forward-mode derivative.

B sequences, L positions of each, D width, P padded vocabulary; of a device's
own b, d and p.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmerge.parallel.rules import activation_sharding, spec_of


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gather(
  kernel: jax.Array, spec: PartitionSpec, mesh: Mesh, dtype: Any
) -> jax.Array:
  """A kernel in a dtype, whole but for the axes other than fsdp.

  Args:
    kernel: lies on the mesh as `spec` says; so will its gradient.
  """
  own = jax.lax.with_sharding_constraint(
    kernel.astype(dtype), NamedSharding(mesh, spec)
  )
  whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
  return jax.lax.with_sharding_constraint(own, NamedSharding(mesh, whole))


def _gathered(
  kernel: jax.Array, spec: PartitionSpec, mesh: Mesh, dtype: Any
) -> tuple[jax.Array, jax.Array]:
  return gather(kernel, spec, mesh, dtype), jnp.empty(0, kernel.dtype)


def _scatter(
  spec: PartitionSpec,
  mesh: Mesh,
  dtype: Any,
  like: jax.Array,
  gradient: jax.Array,
) -> tuple[jax.Array]:
  del dtype
  own = jax.lax.with_sharding_constraint(gradient, NamedSharding(mesh, spec))
  return (own.astype(like.dtype),)


gather.defvjp(_gathered, _scatter)


def look_up(
  table_PxD: jax.Array, tokens_BxL: jax.Array, mesh: Mesh, dtype: Any
) -> jax.Array:
  """Rows of an embedding in a dtype, B x L x D, spread as activations are.

  Each device looks up its part of the width for its fsdp neighbours' tokens
  too, and they exchange the parts: the table is not gathered, nor is its
  gradient ever whole.
  """

  def on_device(table_pxd: jax.Array, tokens_bxl: jax.Array) -> jax.Array:
    tokens = jax.lax.all_gather(tokens_bxl, "fsdp", axis=0, tiled=True)
    rows = tokens - jax.lax.axis_index("tensor") * len(table_pxd)
    is_here = (rows >= 0) & (rows < len(table_pxd))
    x = jnp.take(table_pxd, jnp.where(is_here, rows, 0), axis=0).astype(dtype)
    x = jax.lax.psum(jnp.where(is_here[..., None], x, 0), "tensor")
    return jax.lax.all_to_all(
      x, "fsdp", split_axis=0, concat_axis=2, tiled=True
    )

  spread = activation_sharding(mesh).spec
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(spec_of("embed/embedding"), spread),
    out_specs=spread,
  )(table_PxD, tokens_BxL)
