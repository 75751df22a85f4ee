"""The speeds of a run: tokens, waiting for data, and MFU.

MFU is model FLOP utilisation (arXiv 2204.02311, appendix B).
"""

import math
import time
from collections.abc import Iterator
from typing import TypeVar

from jax.sharding import Mesh

from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.shapes import param_shapes
from jaxmerge.parallel.chips import chip_of

T = TypeVar("T")


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


class Stopwatch:
  """Times steps by the host's clock; nothing waits for the devices.

  Args:
    tokens_per_step: targets in one global batch.
    peak: tokens/s, as peak_speed.
  """

  def __init__(self, tokens_per_step: int, peak: float):
    self._tokens_per_step = tokens_per_step
    self._peak = peak
    self.start()

  def start(self) -> None:
    """Forgets the steps so far, and all time until now."""
    self._since = time.monotonic()
    self._steps, self._waited = 0, 0.0

  def next(self, batches: Iterator[T]) -> T:
    """The batch of the next step."""
    began = time.monotonic()
    batch = next(batches)
    self._waited += time.monotonic() - began
    self._steps += 1
    return batch

  def speeds(self) -> dict[str, float]:
    """Since the start; `data_wait` is the time's share in which `next` waited.

    `tokens_per_second`, and where a peak is known `mfu`.
    """
    elapsed = time.monotonic() - self._since
    speed = self._steps * self._tokens_per_step / elapsed
    speeds = {"tokens_per_second": speed, "data_wait": self._waited / elapsed}
    if math.isfinite(self._peak):
      speeds["mfu"] = speed / self._peak
    return speeds
