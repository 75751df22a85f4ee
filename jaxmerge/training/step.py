"""The training step: loss, gradients in parts, a guard, one update.

B sequences of the global batch, L targets a sequence, A parts of a batch that
are computed one after another.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxmerge.config_fields import key
from jaxmerge.data.batch import Batch
from jaxmerge.model.config import DTYPES
from jaxmerge.model.execution import ATTENTIONS, PLAIN, REMATS, Execution
from jaxmerge.model.loss import losses_and_normalisers, token_losses
from jaxmerge.training.averages import moved
from jaxmerge.training.guard import GuardState, guarded

# Checkpoints whose mean a run goes back to.
ROLLED_BACK = 3
_ROUNDS: Any = {"changes_numbers": False}  # by more than rounding


@dataclasses.dataclass(frozen=True)
class StepConfig:
  """The `step` section of a run's config."""

  accumulate: int = key(
    1,
    "parts of a batch, computed one after another: less memory, same gradient",
    at_least=1,
    **_ROUNDS,
  )
  remat: str = key(
    "none",
    "recomputed in the backward pass: nothing, all but matrix products, or "
    "each whole layer",
    choices=REMATS,
    **_ROUNDS,
  )
  attention: str = key(
    "auto",
    "how attention is computed; auto: cudnn on GPUs and splash on TPUs in "
    "bfloat16, blocked on one CPU, else xla",
    choices=("auto", *ATTENTIONS),
    **_ROUNDS,
  )
  loss_chunk: int = key(
    0,
    "positions of a sequence whose logits exist at once; 0: as many as take "
    "256 MiB, 1/64 of a TPU's memory or 1/8 of a GPU's",
    at_least=0,
    **_ROUNDS,
  )
  logits: str = key(
    "float32",
    "what the head's product is kept in while training; bfloat16 halves its "
    "memory, and rounds each logit to 8 bits",
    choices=DTYPES,
  )
  z_loss: float = key(
    0.0,
    "times log(Z)^2 is added to the loss, Z what logits are normalised by "
    "(arXiv 2204.02311)",
    at_least=0,
  )
  document_mask: bool = key(
    False, "tokens attend only to those of their own document"
  )
  max_skipped: int = key(
    0,
    "steps in a row that may be skipped, not taken, for a gradient that is not "
    "finite or a spike; one more ends the run. 0: the first ends it",
    at_least=0,
    at_most=2**31 - 1,
  )
  spike: float = key(
    0.0,
    "a gradient whose norm is more than so many times its running mean is a "
    "spike; 0: none is",
    at_least=0,
  )
  roll_back: int = key(
    0,
    "times that the run, instead of ending diverged, goes back to the mean of "
    "its last three checkpoints and on behind the batches that spoilt it",
    at_least=0,
    changes_numbers=False,
  )

  def problems(self, prefix: str) -> list[str]:
    """Values that do not fit together."""
    problems = []
    if 0 < self.spike <= 1:
      problems.append(
        f"{prefix}spike must be more than 1, or 0, got {self.spike:g}: every "
        "other step would be one"
      )
    if self.spike and not self.max_skipped:
      problems.append(
        f"{prefix}spike {self.spike:g} needs a {prefix}max_skipped of 1 or more"
      )
    return problems


class TrainState(NamedTuple):
  """Parameters, optimiser state and the number of steps taken (int32[]).

  Also the shardings of these, as a tree of the same form. `averages` are trees
  like the parameters, by name, that follow them from step to step.
  """

  params: Any
  opt_state: Any
  step: Any
  averages: Mapping[str, Any] = {}

  def items(self) -> dict[str, Any]:
    """The trees of it that are saved, by the names of a checkpoint's items."""
    return {
      "params": self.params,
      "opt_state": self.opt_state,
      **self.averages,
    }


class StepMetrics(NamedTuple):
  """Scalars of one step; they stay on the device until they are logged.

  `loss` (nats/token) and `grad_norm` (before clipping) are of the parameters
  before the update, `learning_rate` of the update. Under a guard: the steps
  skipped so far, and those in a row up to this one.
  """

  loss: jax.Array
  grad_norm: jax.Array
  learning_rate: jax.Array
  skipped: jax.Array | None = None
  skipped_in_a_row: jax.Array | None = None


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


@dataclasses.dataclass(frozen=True)
class Objective:
  """The loss of a batch, and how it is computed.

  Attributes:
    graph: the decoder's structure.
    execution: how the decoder is computed.
    accumulate: A.
    z_loss: the weight of log(Z)^2.
    end_of_text: the id of the token that begins each document.
    document_mask: tokens of a stream attend only to those of their document.
  """

  graph: nnx.GraphDef
  execution: Execution = PLAIN
  accumulate: int = 1
  z_loss: float = 0.0
  end_of_text: int = 0
  document_mask: bool = False

  def loss(
    self, params: Any, batch: Batch, targets: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Nats/token with the z-loss, which is minimised, and without.

    Args:
      targets: of a batch with segments, what sums over those of its targets
        that count are divided by; None: their number.
    """
    tokens_BxL1, segments_BxL1 = batch
    mean = jnp.mean
    if segments_BxL1 is not None:
      mean = partial(_mean_of, self.counts(batch), targets)
    elif self.document_mask:
      begins_BxL1 = tokens_BxL1 == self.end_of_text
      segments_BxL1 = jnp.cumsum(begins_BxL1, axis=1, dtype=jnp.int32)
    given = (self.graph, params, tokens_BxL1, segments_BxL1, self.execution)
    if not self.z_loss:
      loss = mean(token_losses(*given))
      return loss, loss
    losses_BxL, normalisers_BxL = losses_and_normalisers(*given)
    loss = mean(losses_BxL)
    return loss + self.z_loss * mean(normalisers_BxL**2), loss

  def counts(self, batch: Batch) -> jax.Array:
    """Which targets of a batch with segments count, bool[B, L].

    One does that follows a token of a document, in it or as its end.
    """
    tokens_BxL1, segments_BxL1 = batch
    before_BxL, own_BxL = segments_BxL1[:, :-1], segments_BxL1[:, 1:]
    is_end_BxL = tokens_BxL1[:, 1:] == self.end_of_text
    return (before_BxL > 0) & ((own_BxL == before_BxL) | is_end_BxL)

  def gradient(
    self, params: Any, shardings: Any, batch: Batch
  ) -> tuple[jax.Array, Any]:
    """The mean loss of a batch in nats/token, and its gradient in float32.

    Args:
      shardings: of the parameters, and so of the sum over the parts.
    """
    targets = None  # of a part, in the mean over the parts
    if batch.segments_BxL1 is not None:
      targets = jnp.sum(self.counts(batch)) / self.accumulate

    def part(batch: Batch) -> tuple[jax.Array, Any]:
      loss_of = jax.value_and_grad(self.loss, has_aux=True)
      (_, loss), gradient = loss_of(params, batch, targets)
      return loss, jax.lax.with_sharding_constraint(gradient, shardings)

    if self.accumulate == 1:
      return part(batch)

    def add(total: Any, batch: Batch) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, total, part(batch)), None

    # Part a takes rows a, a + A, ...: as many of each device's own.
    parts = jax.tree.map(
      lambda x: x.reshape(-1, self.accumulate, x.shape[1]).swapaxes(0, 1), batch
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    total, _ = jax.lax.scan(add, (jnp.float32(0), zeros), parts)
    return jax.tree.map(lambda x: x / self.accumulate, total)


def _mean_of(
  counts_BxL: jax.Array, targets: jax.Array | None, values_BxL: jax.Array
) -> jax.Array:
  if targets is None:
    targets = jnp.sum(counts_BxL)
  return jnp.sum(jnp.where(counts_BxL, values_BxL, 0)) / targets


def make_step(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  shardings: Any,
  ema_decay: float = 0.0,
) -> TrainStep:
  """The step as a function to jit; `shardings` are of the parameters."""

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
    loss, grads = objective.gradient(state.params, shardings, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = StepMetrics(
      loss=loss,
      grad_norm=optax.global_norm(grads),
      learning_rate=jnp.asarray(schedule(state.step), jnp.float32),
    )
    is_skipped: jax.Array | bool = False
    if isinstance(opt_state, GuardState):
      is_skipped = opt_state.in_a_row > 0
      taken = state.step - state.opt_state.skipped
      metrics = metrics._replace(
        learning_rate=jnp.asarray(schedule(taken), jnp.float32),
        skipped=opt_state.skipped,
        skipped_in_a_row=opt_state.in_a_row,
      )
    params = optax.apply_updates(state.params, updates)
    averages = {
      name: moved(tree, params, ema_decay, is_skipped)
      for name, tree in state.averages.items()
    }
    return TrainState(params, opt_state, state.step + 1, averages), metrics

  return step


def with_guard(
  optimizer: optax.GradientTransformation, config: StepConfig
) -> optax.GradientTransformation:
  """The optimiser of a run, which skips steps where the config allows it."""
  return guarded(optimizer, config.spike) if config.max_skipped else optimizer
