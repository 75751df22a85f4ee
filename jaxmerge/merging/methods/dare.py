"""DARE: task vectors that lose entries at random before they are merged."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.config_fields import PerInput, key
from jaxmerge.merging.method import SeedKnobs, merge_method
from jaxmerge.merging.methods.task_arithmetic import TaskKnobs, task_arithmetic
from jaxmerge.merging.methods.ties import TiesKnobs, ties


@dataclasses.dataclass(frozen=True)
class DareKnobs(SeedKnobs, TaskKnobs):
  drop_rate: PerInput = key(0.9, "share that is dropped", at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class DareTiesKnobs(DareKnobs, TiesKnobs):
  pass


def drop(
  tensor: jax.Array, key: jax.Array, knobs: Any, base: jax.Array
) -> jax.Array:
  """A tensor whose task vector lost entries (DARE, arXiv 2311.03099).

  Each entry of tau is dropped with probability `drop_rate`, the others are
  divided by 1 - drop_rate: the mean stays. The knobs are those of one input.
  """
  stays = jax.random.bernoulli(key, 1 - knobs.drop_rate, base.shape)
  return base + jnp.where(stays, (tensor - base) / (1 - knobs.drop_rate), 0.0)


merge_method(
  "dare",
  "task arithmetic after entries are dropped at random, a share of"
  " `drop_rate`, and the rest rescaled (arXiv 2311.03099)",
  acts="per tensor",
  knobs=DareKnobs,
  weights="optional",
  weights_are="factors",
  prepare=drop,
  least=1,
)(task_arithmetic)
merge_method(
  "dare_ties",
  "`ties` after entries are dropped as by `dare`",
  acts="per tensor",
  knobs=DareTiesKnobs,
  weights="optional",
  weights_are="shares",
  prepare=drop,
  least=1,
)(ties)
