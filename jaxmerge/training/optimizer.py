"""AdamW under warm-up then constant: the schedule under which merging pays."""

import math
import re
from typing import Any

import jax
import optax

from jaxmerge.errors import check
from jaxmerge.parallel.rules import leaf_name


def warmup_constant(learning_rate: float, warmup_steps: int) -> optax.Schedule:
  """Linear from zero over `warmup_steps`, then constant.

  Without a decay, averaging checkpoints plays the part of one (WSM, arXiv
  2507.17634).
  """
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1)),
      optax.constant_schedule(learning_rate),
    ],
    [warmup_steps],
  )


def rate_problems(learning_rate: float, warmup_steps: int) -> list[str]:
  """What is wrong with the knobs of warmup_constant."""
  problems = []
  if not (learning_rate > 0 and math.isfinite(learning_rate)):
    problems.append(
      f"optimizer.learning_rate must be positive, got {learning_rate}"
    )
  if warmup_steps < 0:
    problems.append(f"optimizer.warmup_steps must be >= 0, got {warmup_steps}")
  return problems


def _decays(params: Any) -> Any:
  """Weight decay acts on matrices, not on norm scales and biases."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not re.search(r"(^|/)(scale|bias)$", leaf_name(path)),
    params,
  )


def adamw(
  schedule: optax.Schedule,
  *,
  b1: float,
  b2: float,
  weight_decay: float,
  clip_norm: float,
) -> optax.GradientTransformation:
  """AdamW (arXiv 1711.05101) after clipping by the global norm.

  Raises:
    InputError: a number is out of its range.
  """
  problems = [
    f"optimizer.{name} must be in [0, 1), got {value}"
    for name, value in (("b1", b1), ("b2", b2))
    if not 0 <= value < 1
  ]
  if not (weight_decay >= 0 and math.isfinite(weight_decay)):
    problems.append(f"optimizer.weight_decay must be >= 0, got {weight_decay}")
  if not clip_norm > 0:
    problems.append(f"optimizer.clip_norm must be positive, got {clip_norm}")
  check(problems)
  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.adamw(
      schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=_decays
    ),
  )
