"""The decoder: RMSNorm, RoPE, SwiGLU, grouped-query attention, scanned layers.

B batch, L positions, D width, H query heads, G key/value heads, S head size,
V vocabulary, P padded vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.model.config import DecoderConfig

Params = dict[str, Any]


def rotate(x_BxLxHxS: jax.Array, theta: float) -> jax.Array:
  """Rotary position embedding, halves rotated as in Llama (2104.09864)."""
  length, size = x_BxLxHxS.shape[1], x_BxLxHxS.shape[3]
  frequencies = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
  angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
  cos, sin = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
  left, right = jnp.split(x_BxLxHxS.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [left * cos - right * sin, right * cos + left * sin], axis=-1
  )
  return rotated.astype(x_BxLxHxS.dtype)


def _linear(
  config: DecoderConfig, inputs: int, outputs: int, rngs: nnx.Rngs, gain: float
) -> nnx.Linear:
  return nnx.Linear(
    inputs,
    outputs,
    use_bias=False,
    dtype=jnp.dtype(config.dtype),
    kernel_init=nnx.initializers.variance_scaling(
      gain, "fan_in", "truncated_normal"
    ),
    rngs=rngs,
  )


def _norm(config: DecoderConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
  return nnx.RMSNorm(
    config.width,
    epsilon=config.norm_eps,
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


class Attention(nnx.Module):
  """Causal self-attention with grouped key and value heads."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.config = config
    kv_width = config.num_kv_heads * config.head_size
    self.query = _linear(config, config.width, config.width, rngs, 1.0)
    self.key = _linear(config, config.width, kv_width, rngs, 1.0)
    self.value = _linear(config, config.width, kv_width, rngs, 1.0)
    # Residual branches start small, so that depth does not grow the stream.
    gain = 1.0 / (2 * config.depth)
    self.out = _linear(config, config.width, config.width, rngs, gain)

  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    config = self.config
    batch, length, _ = x_BxLxD.shape

    def heads(y: jax.Array, count: int) -> jax.Array:
      return y.reshape(batch, length, count, config.head_size)

    query = heads(self.query(x_BxLxD), config.num_heads)
    key = heads(self.key(x_BxLxD), config.num_kv_heads)
    value = heads(self.value(x_BxLxD), config.num_kv_heads)
    y = jax.nn.dot_product_attention(
      rotate(query, config.rope_theta),
      rotate(key, config.rope_theta),
      value,
      is_causal=True,
    )
    return self.out(y.reshape(batch, length, config.width))


class SwiGLU(nnx.Module):
  """Gated MLP: down(silu(gate(x)) * up(x))."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.gate = _linear(config, config.width, config.mlp_width, rngs, 1.0)
    self.up = _linear(config, config.width, config.mlp_width, rngs, 1.0)
    gain = 1.0 / (2 * config.depth)
    self.down = _linear(config, config.mlp_width, config.width, rngs, gain)

  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    return self.down(jax.nn.silu(self.gate(x_BxLxD)) * self.up(x_BxLxD))


class Layer(nnx.Module):
  """Pre-norm attention and MLP, each added to the residual stream."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.attention_norm = _norm(config, rngs)
    self.attention = Attention(config, rngs)
    self.mlp_norm = _norm(config, rngs)
    self.mlp = SwiGLU(config, rngs)

  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    x_BxLxD = x_BxLxD + self.attention(self.attention_norm(x_BxLxD))
    return x_BxLxD + self.mlp(self.mlp_norm(x_BxLxD))


class Decoder(nnx.Module):
  """A language model whose layers are one stacked, scanned tree.

  Args:
    config: sizes and options.
    rngs: Flax random streams for the initial parameters (`params`).
  """

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.embed = nnx.Embed(
      config.padded_vocab_size,
      config.width,
      dtype=jnp.dtype(config.dtype),
      embedding_init=nnx.initializers.normal(config.width**-0.5),
      rngs=rngs,
    )

    @nnx.split_rngs(splits=config.depth)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make_layers(rngs: nnx.Rngs) -> Layer:
      return Layer(config, rngs)

    self.layers = make_layers(rngs)
    self.final_norm = _norm(config, rngs)
    if not config.tied:
      self.head = _linear(
        config, config.width, config.padded_vocab_size, rngs, 1.0
      )

  def padded_logits(self, tokens_BxL: jax.Array) -> jax.Array:
    """int32[B, L] -> float32[B, L, P]; columns of padding hold -inf."""
    x_BxLxD = self.embed(tokens_BxL)

    def run_layer(x_BxLxD: jax.Array, layer: Layer) -> jax.Array:
      return layer(x_BxLxD)

    if self.config.remat:
      run_layer = nnx.remat(run_layer)
    run_layers = nnx.scan(run_layer, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    x_BxLxD = self.final_norm(run_layers(x_BxLxD, self.layers))
    if self.config.tied:
      kernel_DxP = self.embed.embedding[...].T
    else:
      kernel_DxP = self.head.kernel[...]
    # Summed and kept in float32: logits of 16 in bfloat16 are 1/8 apart.
    logits = jnp.matmul(
      x_BxLxD,
      kernel_DxP.astype(x_BxLxD.dtype),
      preferred_element_type=jnp.float32,
    )
    padding_P = (
      jnp.arange(self.config.padded_vocab_size) >= self.config.vocab_size
    )
    return jnp.where(padding_P, -jnp.inf, logits)

  def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
    """int32[B, L] -> float32[B, L, V], without the padding."""
    return self.padded_logits(tokens_BxL)[..., : self.config.vocab_size]


def abstract_decoder(config: DecoderConfig) -> tuple[nnx.GraphDef, Params]:
  """The decoder's structure and its parameters' shapes, nothing allocated.

  Returns:
    The graph definition for `nnx.merge(graph, params)` and a nested dict of
    `jax.ShapeDtypeStruct`.
  """
  model = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
  graph, state = nnx.split(model, nnx.Param)
  return graph, nnx.to_pure_dict(state)


def init_params(config: DecoderConfig, key: jax.Array) -> Params:
  """Random initial parameters (float32) as a nested dict; may be jitted."""
  return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(key)), nnx.Param))
