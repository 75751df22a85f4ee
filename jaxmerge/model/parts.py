"""Linear layers, norms and activations of a decoder, as its config says.

D width, P padded vocabulary.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.model.config import DecoderConfig

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu": partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
}


def linear_layer(
  config: DecoderConfig,
  inputs: int,
  outputs: int,
  rngs: nnx.Rngs,
  *,
  gain: float = 1.0,
  bias: bool = False,
) -> nnx.Linear:
  return nnx.Linear(
    inputs,
    outputs,
    use_bias=bias,
    dtype=jnp.dtype(config.dtype),
    kernel_init=nnx.initializers.variance_scaling(
      gain, "fan_in", "truncated_normal"
    ),
    rngs=rngs,
  )


def rms_norm(config: DecoderConfig, size: int, rngs: nnx.Rngs) -> nnx.RMSNorm:
  return nnx.RMSNorm(
    size, epsilon=config.rms_norm_eps, dtype=jnp.dtype(config.dtype), rngs=rngs
  )


def norm(config: DecoderConfig, rngs: nnx.Rngs) -> nnx.RMSNorm | nnx.LayerNorm:
  if config.norm == "rms":
    return rms_norm(config, config.hidden_size, rngs)
  return nnx.LayerNorm(
    config.hidden_size,
    epsilon=config.rms_norm_eps,
    dtype=jnp.dtype(config.dtype),
    use_fast_variance=False,  # E[x^2] - E[x]^2 cancels where means are large
    rngs=rngs,
  )


def unit_columns(kernel_DxP: jax.Array) -> jax.Array:
  """Columns of length 1; those shorter than 1e-12 grow by 1e12 at most."""
  kernel_DxP = kernel_DxP.astype(jnp.float32)
  squares_P = jnp.sum(kernel_DxP**2, axis=0)
  return kernel_DxP / jnp.sqrt(jnp.maximum(squares_P, 1e-24))
