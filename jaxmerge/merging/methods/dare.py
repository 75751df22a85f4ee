"""DARE: task vectors that lose entries at random before they are merged."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.config_fields import key
from jaxmerge.merging.method import SeedKnobs, Tensors, merge_method
from jaxmerge.merging.methods.task_arithmetic import TaskKnobs, task_arithmetic
from jaxmerge.merging.methods.ties import TiesKnobs, ties

# Gives so many random keys, those of the tensor at hand.
Draw = Callable[[int], list[jax.Array]]


@dataclasses.dataclass(frozen=True)
class DareKnobs(SeedKnobs, TaskKnobs):
  drop_rate: float = key(0.9, "share that is dropped", at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class DareTiesKnobs(DareKnobs, TiesKnobs):
  pass


def dropped(
  tensors: Tensors, knobs: Any, base: Any, draw: Draw
) -> list[jax.Array]:
  """Tensors whose task vectors lost entries (DARE, arXiv 2311.03099).

  Each entry of tau_i is dropped with probability `drop_rate`, the others are
  divided by 1 - drop_rate: the mean stays. One draw for each input, parameter
  name and layer.
  """
  stays_rate = 1 - jnp.float32(knobs.drop_rate)
  thin = []
  for key_of_end, end in zip(draw(len(tensors)), tensors):
    stays = jax.random.bernoulli(key_of_end, stays_rate, base.shape)
    thin.append(base + jnp.where(stays, (end - base) / stays_rate, 0.0))
  return thin


def _register(
  name: str, summary: str, merge: Callable[..., jax.Array], **fields: Any
) -> None:
  @merge_method(
    name, summary, acts="per tensor", weights="optional", least=1, **fields
  )
  def merge_dropped(
    tensors: Tensors, weights_K: jax.Array, knobs: Any, base: Any, draw: Draw
  ) -> jax.Array:
    return merge(dropped(tensors, knobs, base, draw), weights_K, knobs, base)


_register(
  "dare",
  "task arithmetic after entries are dropped at random, a share of"
  " `drop_rate`, and the rest rescaled (arXiv 2311.03099)",
  task_arithmetic,
  knobs=DareKnobs,
  weights_are="factors",
)
_register(
  "dare_ties",
  "`ties` after entries are dropped as by `dare`",
  ties,
  knobs=DareTiesKnobs,
  weights_are="shares",
)
