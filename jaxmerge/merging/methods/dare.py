"""DARE: task vectors that lose entries at random before they are merged."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.config_fields import key
from jaxmerge.merging.method import SeedKnobs, merge_method
from jaxmerge.merging.methods.task_arithmetic import (
  TaskKnobs,
  task_arithmetic,
)
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
  tensors: Sequence[jax.Array], knobs: Any, base: Any, draw: Draw
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


@merge_method(
  "dare",
  "task arithmetic after entries are dropped at random, a share of"
  " `drop_rate`, and the rest rescaled (arXiv 2311.03099)",
  acts="per tensor",
  knobs=DareKnobs,
  weights="optional",
  weights_are="factors",
  least=1,
)
def dare(
  tensors: Sequence[jax.Array],
  weights_K: jax.Array,
  knobs: Any,
  base: Any,
  draw: Draw,
) -> jax.Array:
  thin = dropped(tensors, knobs, base, draw)
  return task_arithmetic(thin, weights_K, knobs, base)


@merge_method(
  "dare_ties",
  "`ties` after entries are dropped as by `dare`",
  acts="per tensor",
  knobs=DareTiesKnobs,
  weights="optional",
  weights_are="shares",
  least=1,
)
def dare_ties(
  tensors: Sequence[jax.Array],
  weights_K: jax.Array,
  knobs: Any,
  base: Any,
  draw: Draw,
) -> jax.Array:
  thin = dropped(tensors, knobs, base, draw)
  return ties(thin, weights_K, knobs, base)
