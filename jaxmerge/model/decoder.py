"""The decoder: norms, RoPE, MLP, grouped-query attention, scanned layers.

One data flow for every family; what differs between them is in the config.

B batch, L positions, D width, H query heads, G key/value heads, S head size,
F outputs of a linear layer, V vocabulary, P padded vocabulary.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.model.attention import SPLASH, Branches, Segments, attend
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.execution import PLAIN, Execution
from jaxmerge.model.head import logits_of
from jaxmerge.model.on_cpu import project
from jaxmerge.model.parts import (
  ACTIVATIONS,
  linear_layer,
  norm,
  rms_norm,
  unit_columns,
)
from jaxmerge.model.rope import rotate

Params = dict[str, Any]


def _keeps_dots(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
  """Matrix products, and what cuDNN's attention gives, as it is one call."""
  is_dot = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return primitive.name.startswith("dot_product_attention") or is_dot(
    primitive, *arguments, **parameters
  )


# Of an execution's remat: what the forward pass keeps of a layer.
_POLICIES: Mapping[str, Callable[..., bool] | None] = {
  "dots": jax.checkpoint_policies.save_from_both_policies(
    _keeps_dots, jax.checkpoint_policies.save_only_these_names(SPLASH)
  ),
  "full": None,
}


def _apply(
  linear: nnx.Linear,
  x_BxLxD: jax.Array,
  execution: Execution,
  name: str = "mlp/up",
) -> jax.Array:
  """x W + b, B x L x F; `name` is of a layer whose kernel is spread alike."""
  if not (execution.rows or execution.gathers):
    return linear(x_BxLxD)
  *leading, width = x_BxLxD.shape
  kernel_DxF = linear.kernel[...]
  kernel_DxF = execution.gather(
    kernel_DxF, f"layers/{name}/kernel", x_BxLxD.dtype
  ).astype(x_BxLxD.dtype)
  if execution.rows:
    y_NxF = project(x_BxLxD.reshape(-1, width), kernel_DxF)
    y_BxLxF = y_NxF.reshape(*leading, -1)
  else:
    y_BxLxF = x_BxLxD @ kernel_DxF
  if linear.bias is not None:
    y_BxLxF = y_BxLxF + linear.bias[...].astype(y_BxLxF.dtype)
  return y_BxLxF


class Attention(nnx.Module):
  """Causal self-attention with grouped key and value heads."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.config = config
    width, size = config.hidden_size, config.head_size
    query_width = config.num_attention_heads * size
    kv_width = config.num_key_value_heads * size
    bias = config.attention_bias != ""
    self.query = linear_layer(config, width, query_width, rngs, bias=bias)
    self.key = linear_layer(config, width, kv_width, rngs, bias=bias)
    self.value = linear_layer(config, width, kv_width, rngs, bias=bias)
    if config.query_key_norm:
      whole = config.query_key_norm == "projection"
      self.query_norm = rms_norm(config, query_width if whole else size, rngs)
      self.key_norm = rms_norm(config, kv_width if whole else size, rngs)
    # Residual branches start small, so that depth does not grow the stream.
    gain = 1.0 / (2 * config.num_hidden_layers)
    bias = config.attention_bias == "all"
    self.out = linear_layer(
      config, query_width, width, rngs, gain=gain, bias=bias
    )

  def __call__(
    self,
    x_BxLxD: jax.Array,
    segments: Segments,
    execution: Execution,
  ) -> jax.Array:
    config = self.config
    batch, length, _ = x_BxLxD.shape
    linear = partial(_apply, execution=execution)

    def heads(y: jax.Array, count: int) -> jax.Array:
      return y.reshape(batch, length, count, config.head_size)

    query, key = linear(self.query, x_BxLxD), linear(self.key, x_BxLxD)
    if config.query_key_norm == "projection":
      query, key = self.query_norm(query), self.key_norm(key)
    query = heads(query, config.num_attention_heads)
    key = heads(key, config.num_key_value_heads)
    if config.query_key_norm == "head":
      query, key = self.query_norm(query), self.key_norm(key)
    value = heads(linear(self.value, x_BxLxD), config.num_key_value_heads)
    turn = partial(
      rotate,
      theta=config.rope_theta,
      fraction=config.rotary_fraction,
      scaling=config.rope_scaling,
      position_BxL=segments.position_BxL
      if isinstance(segments, Branches)
      else None,
    )
    y = attend(turn(query), turn(key), value, segments, execution)
    y = y.reshape(batch, length, -1)
    return linear(self.out, y, name="attention/out")


class MLP(nnx.Module):
  """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.config = config
    width, hidden = config.hidden_size, config.intermediate_size
    bias = config.mlp_bias
    if config.gated_mlp:
      self.gate = linear_layer(config, width, hidden, rngs, bias=bias)
    self.up = linear_layer(config, width, hidden, rngs, bias=bias)
    gain = 1.0 / (2 * config.num_hidden_layers)
    self.down = linear_layer(config, hidden, width, rngs, gain=gain, bias=bias)

  def __call__(self, x_BxLxD: jax.Array, execution: Execution) -> jax.Array:
    linear = partial(_apply, execution=execution)
    activation = ACTIVATIONS[self.config.activation]
    if self.config.gated_mlp:
      gate = activation(linear(self.gate, x_BxLxD))
      hidden = gate * linear(self.up, x_BxLxD)
    else:
      hidden = activation(linear(self.up, x_BxLxD))
    return linear(self.down, hidden, name="mlp/down")


class Layer(nnx.Module):
  """Attention and MLP with their norms, each added to the residual stream."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.attention_norm = norm(config, rngs)
    self.attention = Attention(config, rngs)
    self.mlp_norm = norm(config, rngs)
    self.mlp = MLP(config, rngs)

  def __call__(
    self,
    x_BxLxD: jax.Array,
    segments: Segments,
    execution: Execution,
  ) -> jax.Array:
    attend = partial(self.attention, segments=segments, execution=execution)
    mlp = partial(self.mlp, execution=execution)
    if self.config.norm_after:
      x_BxLxD = x_BxLxD + self.attention_norm(attend(x_BxLxD))
      return x_BxLxD + self.mlp_norm(mlp(x_BxLxD))
    attended = x_BxLxD + attend(self.attention_norm(x_BxLxD))
    if self.config.parallel_residual:
      return attended + mlp(self.mlp_norm(x_BxLxD))
    return attended + mlp(self.mlp_norm(attended))


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
    self.final_norm = norm(config, rngs)
    if not config.tie_word_embeddings:
      self.head = linear_layer(
        config, config.hidden_size, config.padded_vocab_size, rngs
      )

  def hidden(
    self,
    tokens_BxL: jax.Array,
    segments: Segments = None,
    execution: Execution = PLAIN,
  ) -> jax.Array:
    """int32[B, L] -> B x L x D, what the head turns into logits.

    Args:
      segments: which positions see which, as attention.Segments.
      execution: how it is computed.
    """
    x_BxLxD = execution.embed(
      self.embed.embedding[...], tokens_BxL, jnp.dtype(self.config.dtype)
    )

    def run_layer(x_BxLxD: jax.Array, layer: Layer) -> jax.Array:
      return execution.constrain(layer(x_BxLxD, segments, execution))

    if execution.remat != "none":
      run_layer = nnx.remat(
        run_layer,
        # A scan's two passes are two loops, which share nothing anyway.
        prevent_cse=execution.unroll,
        policy=_POLICIES[execution.remat],
      )
    run_layers = nnx.scan(
      run_layer,
      in_axes=(nnx.Carry, 0),
      out_axes=nnx.Carry,
      unroll=self.config.num_hidden_layers if execution.unroll else 1,
    )
    return self.final_norm(run_layers(x_BxLxD, self.layers))

  def head_kernel(self) -> jax.Array:
    """float32[D, P], of the head or the transposed embedding."""
    if self.config.tie_word_embeddings:
      kernel_DxP = self.embed.embedding[...].T
    else:
      kernel_DxP = self.head.kernel[...]
    return unit_columns(kernel_DxP) if self.config.unit_head else kernel_DxP

  def padded_logits(
    self,
    tokens_BxL: jax.Array,
    segments: Segments = None,
    execution: Execution = PLAIN,
  ) -> jax.Array:
    """int32[B, L] -> float32[B, L, P]; columns of padding hold -inf."""
    x_BxLxD = self.hidden(tokens_BxL, segments, execution)
    return logits_of(self.config, x_BxLxD, self.head_kernel())

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
