"""Our training step as `pretrain` builds it, on random tokens.

A process of it is started by `turns.Side`; `benchmarks/step_variants.py` uses
it in its own.
"""

import dataclasses
import sys
from typing import Any

from turns import Shape, serve, worker_arguments

from jaxmerge import allocator

# Before jax is imported, as the verbs do it.
if __name__ == "__main__" and worker_arguments(sys.argv)[1].get("keep_memory"):
  allocator.keep_memory()

import jax
import numpy as np
from ml_collections import config_dict

from jaxmerge.data.batch import Batch
from jaxmerge.parallel.rules import place_batch
from jaxmerge.training.config_checks import check_config
from jaxmerge.training.trainer import Trainer


def build_ours(shape: Shape, options: dict[str, Any]) -> Trainer:
  """The trainer of a run of that shape.

  Args:
    options: of `config.step`; and `execution`, fields of the Execution that
      are changed after it was chosen.
  """
  options = dict(options)
  execution = options.pop("execution", {})
  config = config_dict.ConfigDict()
  config.batch_size = shape.batch
  config.eval_batch_size = shape.batch
  config.seq_len = shape.seq_len
  config.data = {"source": "python_source", "vocab_size": shape.vocab_size}
  config.model = {
    "hidden_size": shape.hidden_size,
    "num_hidden_layers": shape.num_layers,
    "num_attention_heads": shape.num_heads,
    "num_key_value_heads": shape.num_kv_heads,
    "intermediate_size": shape.intermediate_size,
    "tie_word_embeddings": shape.tied,
    "dtype": shape.dtype,
  }
  config.optimizer = {"learning_rate": 3e-4}
  config.step = options
  _, trainer = check_config(config)
  return dataclasses.replace(
    trainer, execution=dataclasses.replace(trainer.execution, **execution)
  )


def details(trainer: Trainer) -> str:
  """How it computes, in words."""
  execution = trainer.execution
  names = ("attention", "remat", "loss_chunk", "logits", "unroll")
  words = [f"{name} {getattr(execution, name)}" for name in names]
  if trainer.step.document_mask:
    words.append("document_mask")
  return ", ".join(words)


class Training:
  """A trainer, its state and batches of random tokens on the devices."""

  def __init__(self, shape: Shape, options: dict[str, Any]):
    self.trainer = build_ours(shape, options)
    self.state = self.trainer.random_start(0)
    self.step = self.trainer.train_step()
    random = np.random.default_rng(1)
    size = (4, shape.batch, shape.seq_len + 1)
    tokens = random.integers(shape.vocab_size, size=size, dtype=np.int32)
    if self.trainer.step.document_mask:  # about four documents a sequence
      begins = random.random(size) < 4 / shape.seq_len
      tokens = np.where(begins, self.trainer.end_of_text, tokens)
    self.batches = [
      place_batch(self.trainer.mesh, Batch(batch)) for batch in tokens
    ]
    self.taken = 0

  def run(self, steps: int) -> float:
    """So many steps; waits for the last."""
    for _ in range(steps):
      batch = self.batches[self.taken % len(self.batches)]
      self.taken += 1
      self.state, metrics = self.step(self.state, batch)
    jax.block_until_ready(self.state)
    return float(metrics.loss)

  def describe(self) -> dict[str, Any]:
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    leaves = jax.tree.leaves(self.state.params)
    return {
      "peak_bytes": stats.get("peak_bytes_in_use", 0),
      "parameters": sum(leaf.size for leaf in leaves),
      "version": jax.__version__,
      "device": device.device_kind,
      "details": details(self.trainer),
    }


def main() -> None:
  shape, options = worker_arguments(sys.argv)
  warm_up = options.pop("warm_up", 3)
  options.pop("keep_memory", None)
  training = Training(shape, options)
  serve(training.run, training.describe, warm_up)


if __name__ == "__main__":
  main()
