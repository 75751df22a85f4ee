"""The shapes of a decoder's parameters, without the seconds that Flax takes.

N layers, D width, F hidden width of the MLP, P padded vocabulary.
"""

from jaxmerge.model.config import DecoderConfig

Shapes = dict[str, tuple[int, ...]]


def param_shapes(config: DecoderConfig) -> Shapes:
  """By name, as `decoder.abstract_decoder` gives them."""
  width, hidden = config.hidden_size, config.intermediate_size
  size = config.head_size
  queries = config.num_attention_heads * size
  pairs = config.num_key_value_heads * size
  bias = config.attention_bias
  layer = {
    **_norm("attention_norm", config),
    **_linear("attention/query", width, queries, bias != ""),
    **_linear("attention/key", width, pairs, bias != ""),
    **_linear("attention/value", width, pairs, bias != ""),
    **_linear("attention/out", queries, width, bias == "all"),
    **_norm("mlp_norm", config),
    **_linear("mlp/up", width, hidden, config.mlp_bias),
    **_linear("mlp/down", hidden, width, config.mlp_bias),
  }
  if config.query_key_norm:
    whole = config.query_key_norm == "projection"
    layer["attention/query_norm/scale"] = (queries if whole else size,)
    layer["attention/key_norm/scale"] = (pairs if whole else size,)
  if config.gated_mlp:
    layer |= _linear("mlp/gate", width, hidden, config.mlp_bias)
  count = config.num_hidden_layers
  shapes: Shapes = {
    "embed/embedding": (config.padded_vocab_size, width),
    **{f"layers/{name}": (count, *shape) for name, shape in layer.items()},
    **_norm("final_norm", config),
  }
  if not config.tie_word_embeddings:
    shapes["head/kernel"] = (width, config.padded_vocab_size)
  return dict(sorted(shapes.items()))


def _linear(name: str, inputs: int, outputs: int, bias: bool) -> Shapes:
  kernel = {f"{name}/kernel": (inputs, outputs)}
  return kernel | ({f"{name}/bias": (outputs,)} if bias else {})


def _norm(name: str, config: DecoderConfig) -> Shapes:
  parts = ("scale",) if config.norm == "rms" else ("bias", "scale")
  return {f"{name}/{part}": (config.hidden_size,) for part in parts}
