"""The head: logits, and their cross-entropy with a backward pass of its own.

Left to JAX, the logits' gradient stays in the float32 of the logits; a GPU then
multiplies in float32, half as fast, and a CPU keeps a softmax and makes the
kernel's gradient in the slower order of its axes.

D width, P padded vocabulary; any axes (...) of sequences and positions.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.model.config import DecoderConfig


def logits_of(
  config: DecoderConfig,
  x: jax.Array,
  kernel_DxP: jax.Array,
  columns_P: jax.Array | None = None,
) -> jax.Array:
  """(..., D) -> float32(..., P); columns of padding hold -inf.

  Of a part of the head `columns_P` says which columns it is.

  Capped, where the config says so, to cap * tanh(logits / cap) (Gemma 2, arXiv
  2408.00118).
  """
  # Summed and kept in float32: logits of 16 in bfloat16 are 1/8 apart.
  return _capped(config, _product(x, kernel_DxP, "float32"), columns_P)


def _product(x: jax.Array, kernel_DxP: jax.Array, dtype: str) -> jax.Array:
  return jnp.matmul(
    x, kernel_DxP.astype(x.dtype), preferred_element_type=jnp.dtype(dtype)
  )


def _capped(
  config: DecoderConfig,
  product: jax.Array,
  columns_P: jax.Array | None = None,
) -> jax.Array:
  """The logits, float32(..., P), of the head's product."""
  logits = product.astype(jnp.float32)
  if config.logit_softcap:
    logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
  if columns_P is None:
    columns_P = jnp.arange(config.padded_vocab_size)
  padding_P = columns_P >= config.vocab_size
  return jnp.where(padding_P, -jnp.inf, logits)


def plain_losses(
  config: DecoderConfig,
  x: jax.Array,
  kernel_DxP: jax.Array,
  targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """As head_losses; it also has a forward mode."""
  logits = logits_of(config, x, kernel_DxP)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  normalisers = jax.nn.logsumexp(logits, axis=-1)
  return normalisers - chosen, normalisers


@partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def head_losses(
  config: DecoderConfig,
  x: jax.Array,
  kernel_DxP: jax.Array,
  targets: jax.Array,
  dtype: str = "float32",
) -> tuple[jax.Array, jax.Array]:
  """Nats of each target, and log Z, what its logits are normalised by.

  Args:
    x: (..., D), of the dtype to compute in.
    kernel_DxP: its gradient is summed and kept in its dtype.
    targets: int32(...).
    dtype: that the head's product is rounded to, and kept in.

  Returns:
    float32(...) of each.
  """
  return _forward(config, x, kernel_DxP, targets, dtype)[0]


def _forward(
  config: DecoderConfig,
  x: jax.Array,
  kernel_DxP: jax.Array,
  targets: jax.Array,
  dtype: str,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
  product = _product(x, kernel_DxP, dtype)
  logits = _capped(config, product)
  normalisers = jax.nn.logsumexp(logits, axis=-1)
  # A sum, which reads the logits in one pass with the one above.
  is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
  chosen = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
  found = (normalisers - chosen, normalisers)
  return found, (x, kernel_DxP, targets, product, normalisers)


def _backward(
  config: DecoderConfig,
  dtype: str,
  saved: tuple[jax.Array, ...],
  slopes: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, Any]:
  del dtype
  x, kernel_DxP, targets, product, normalisers = saved
  logits = _capped(config, product)
  of_losses, of_normalisers = slopes
  shares = jnp.exp(logits - normalisers[..., None])  # 0 where padding is
  is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
  of_logits = (of_losses + of_normalisers)[..., None] * shares - jnp.where(
    is_target, of_losses[..., None], 0.0
  )
  if config.logit_softcap:
    # Of tanh: 1 - tanh^2. Padding is -inf, and its slope 0 as its share.
    tanh = jnp.where(logits > -jnp.inf, logits, 0.0) / config.logit_softcap
    of_logits = of_logits * (1 - tanh**2)
  of_logits = of_logits.astype(x.dtype)
  of_x = jnp.matmul(of_logits, kernel_DxP.astype(x.dtype).T)
  of_kernel = jnp.einsum(
    "...d,...p->dp", x, of_logits, preferred_element_type=kernel_DxP.dtype
  )
  return of_x, of_kernel, None


head_losses.defvjp(_forward, _backward)
