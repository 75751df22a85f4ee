"""Model FLOP utilisation (arXiv 2204.02311, appendix B) of a run's devices."""

import math

from jax.sharding import Mesh

from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.shapes import param_shapes
from jaxmerge.parallel.chips import chip_of


def flops_per_token(config: DecoderConfig, length: int) -> float:
  """Operations that a step must do for each target of sequences of a length.

  6 N + 6 layers heads head_size length: forward pass and twice as much
  backward; of attention the causal half alone; nothing for recomputation. N are
  all parameters less an embedding that no matrix product uses.
  """
  shapes = param_shapes(config)
  if not config.tie_word_embeddings:
    del shapes["embed/embedding"]
  width = config.num_attention_heads * config.head_size
  attention = config.num_hidden_layers * width * length
  return 6.0 * (sum(map(math.prod, shapes.values())) + attention)


def peak_speed(config: DecoderConfig, length: int, mesh: Mesh) -> float:
  """Tokens/s at the peak of the mesh's chips in bfloat16; inf if not known."""
  chip = chip_of(mesh.devices.flat[0].device_kind)
  if chip is None:
    return math.inf
  peak = 1e12 * chip.peak_tflops * mesh.size
  return peak / flops_per_token(config, length)
