"""The decoder: norms, RoPE, MLP, grouped-query attention, scanned layers.

One data flow for every family; what differs between them is in the config.

B batch, L positions, D width, H query heads, G key/value heads, S head size,
V vocabulary, P padded vocabulary.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.rope import rotate

Params = dict[str, Any]

_ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu": partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
}


def _linear(
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


def _rms_norm(config: DecoderConfig, size: int, rngs: nnx.Rngs) -> nnx.RMSNorm:
  return nnx.RMSNorm(
    size, epsilon=config.rms_norm_eps, dtype=jnp.dtype(config.dtype), rngs=rngs
  )


def _norm(config: DecoderConfig, rngs: nnx.Rngs) -> nnx.RMSNorm | nnx.LayerNorm:
  if config.norm == "rms":
    return _rms_norm(config, config.hidden_size, rngs)
  return nnx.LayerNorm(
    config.hidden_size,
    epsilon=config.rms_norm_eps,
    dtype=jnp.dtype(config.dtype),
    use_fast_variance=False,  # E[x^2] - E[x]^2 cancels where means are large
    rngs=rngs,
  )


def _unit_columns(kernel_DxP: jax.Array) -> jax.Array:
  """Columns of length 1; those shorter than 1e-12 grow by 1e12 at most."""
  kernel_DxP = kernel_DxP.astype(jnp.float32)
  squares_P = jnp.sum(kernel_DxP**2, axis=0)
  return kernel_DxP / jnp.sqrt(jnp.maximum(squares_P, 1e-24))


class Attention(nnx.Module):
  """Causal self-attention with grouped key and value heads."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.config = config
    width, size = config.hidden_size, config.head_size
    query_width = config.num_attention_heads * size
    kv_width = config.num_key_value_heads * size
    bias = config.attention_bias != ""
    self.query = _linear(config, width, query_width, rngs, bias=bias)
    self.key = _linear(config, width, kv_width, rngs, bias=bias)
    self.value = _linear(config, width, kv_width, rngs, bias=bias)
    if config.query_key_norm:
      whole = config.query_key_norm == "projection"
      self.query_norm = _rms_norm(config, query_width if whole else size, rngs)
      self.key_norm = _rms_norm(config, kv_width if whole else size, rngs)
    # Residual branches start small, so that depth does not grow the stream.
    gain = 1.0 / (2 * config.num_hidden_layers)
    bias = config.attention_bias == "all"
    self.out = _linear(config, query_width, width, rngs, gain=gain, bias=bias)

  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    config = self.config
    batch, length, _ = x_BxLxD.shape

    def heads(y: jax.Array, count: int) -> jax.Array:
      return y.reshape(batch, length, count, config.head_size)

    query, key = self.query(x_BxLxD), self.key(x_BxLxD)
    if config.query_key_norm == "projection":
      query, key = self.query_norm(query), self.key_norm(key)
    query = heads(query, config.num_attention_heads)
    key = heads(key, config.num_key_value_heads)
    if config.query_key_norm == "head":
      query, key = self.query_norm(query), self.key_norm(key)
    value = heads(self.value(x_BxLxD), config.num_key_value_heads)
    turn = partial(
      rotate,
      theta=config.rope_theta,
      fraction=config.rotary_fraction,
      scaling=config.rope_scaling,
    )
    y = jax.nn.dot_product_attention(
      turn(query), turn(key), value, is_causal=True
    )
    return self.out(y.reshape(batch, length, -1))


class MLP(nnx.Module):
  """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.config = config
    width, hidden = config.hidden_size, config.intermediate_size
    bias = config.mlp_bias
    if config.gated_mlp:
      self.gate = _linear(config, width, hidden, rngs, bias=bias)
    self.up = _linear(config, width, hidden, rngs, bias=bias)
    gain = 1.0 / (2 * config.num_hidden_layers)
    self.down = _linear(config, hidden, width, rngs, gain=gain, bias=bias)

  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    activation = _ACTIVATIONS[self.config.activation]
    if self.config.gated_mlp:
      return self.down(activation(self.gate(x_BxLxD)) * self.up(x_BxLxD))
    return self.down(activation(self.up(x_BxLxD)))


class Layer(nnx.Module):
  """Attention and MLP with their norms, each added to the residual stream."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.attention_norm = _norm(config, rngs)
    self.attention = Attention(config, rngs)
    self.mlp_norm = _norm(config, rngs)
    self.mlp = MLP(config, rngs)

  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    if self.config.norm_after:
      x_BxLxD = x_BxLxD + self.attention_norm(self.attention(x_BxLxD))
      return x_BxLxD + self.mlp_norm(self.mlp(x_BxLxD))
    attended = x_BxLxD + self.attention(self.attention_norm(x_BxLxD))
    if self.config.parallel_residual:
      return attended + self.mlp(self.mlp_norm(x_BxLxD))
    return attended + self.mlp(self.mlp_norm(attended))


class Decoder(nnx.Module):
  """A language model whose layers are one stacked, scanned tree."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.embed = nnx.Embed(
      config.padded_vocab_size,
      config.hidden_size,
      dtype=jnp.dtype(config.dtype),
      embedding_init=nnx.initializers.normal(config.hidden_size**-0.5),
      rngs=rngs,
    )

    @nnx.split_rngs(splits=config.num_hidden_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make_layers(rngs: nnx.Rngs) -> Layer:
      return Layer(config, rngs)

    self.layers = make_layers(rngs)
    self.final_norm = _norm(config, rngs)
    if not config.tie_word_embeddings:
      self.head = _linear(
        config, config.hidden_size, config.padded_vocab_size, rngs
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
    if self.config.tie_word_embeddings:
      kernel_DxP = self.embed.embedding[...].T
    else:
      kernel_DxP = self.head.kernel[...]
    if self.config.unit_head:
      kernel_DxP = _unit_columns(kernel_DxP)
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
