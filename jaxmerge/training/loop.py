"""The training loop: batches in, checkpoints and metrics out."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmerge.errors import Diverged
from jaxmerge.parallel.rules import place_batch
from jaxmerge.progress import Progress
from jaxmerge.training.metrics import MetricsWriter
from jaxmerge.training.state import TrainState
from jaxmerge.training.step import StepMetrics, TrainStep


@dataclasses.dataclass(frozen=True)
class Plan:
  """Says how long to train, and when to log and to save.

  Attributes:
    start: steps already taken, of the `num_steps` to reach.
    tokens_per_step: targets in one global batch.
    log_every: steps between reads of the metrics from the devices.
    save_every: steps between checkpoints; the last step is saved too.
  """

  start: int
  num_steps: int
  tokens_per_step: int
  log_every: int
  save_every: int

  def saves_at(self, step: int) -> bool:
    return step % self.save_every == 0 or step == self.num_steps

  def logs_at(self, step: int) -> bool:
    return step % self.log_every == 0 or self.saves_at(step)


def train(
  state: TrainState,
  train_step: TrainStep,
  batches: Iterator[dict[str, np.ndarray]],
  mesh: Mesh,
  plan: Plan,
  *,
  save: Callable[[int, TrainState], None],
  validate: Callable[[TrainState], float],
  metrics: MetricsWriter | None,
  progress: Progress,
) -> TrainState:
  """Trains from `plan.start` to `plan.num_steps`.

  Metrics of a step reach metrics.jsonl before its checkpoint is saved, so a
  run killed anywhere and resumed writes the same file as one never stopped.
  What is not finite is neither written nor saved.

  Args:
    save: starts saving `(step, state)`; the state may be donated afterwards.
    validate: validation loss in nats/token.
    metrics: None in the processes of a job that write none.

  Raises:
    Diverged: a loss or a gradient is not finite; found out at the next step
      that is logged, as the numbers stay on the devices until then.
  """
  pending: list[StepMetrics] = []
  clock, clock_step = time.monotonic(), plan.start
  for step in range(plan.start + 1, plan.num_steps + 1):
    tokens = place_batch(mesh, next(batches)["tokens"])
    state, step_metrics = train_step(state, tokens)
    pending.append(step_metrics)
    if not plan.logs_at(step):
      continue
    records = _records(pending, step, plan.tokens_per_step)
    pending = []
    _check_finite(records, metrics)
    elapsed = time.monotonic() - clock
    speed = (step - clock_step) * plan.tokens_per_step / elapsed
    note = f"loss {records[-1]['loss']:.4f}, {speed:,.0f} tokens/s"
    if plan.saves_at(step):
      records[-1]["validation_loss"] = validate(state)
      _check_finite(records, metrics)
    if metrics is not None:
      metrics.write(records, {"tokens_per_second": speed})
    if plan.saves_at(step):
      save(step, state)
    progress.stage("pretrain", step, plan.num_steps, note)
    # Validation and saving are not part of the training speed.
    clock, clock_step = time.monotonic(), step
  return state


def _check_finite(
  records: Sequence[dict[str, float]], metrics: MetricsWriter | None
) -> None:
  """Ends a run that has diverged; the steps before that are written."""
  for number, record in enumerate(records):
    bad = [name for name, value in record.items() if not math.isfinite(value)]
    if not bad:
      continue
    if metrics is not None and number:
      metrics.write(records[:number], {})
    value = f"{bad[0].replace('_', ' ')} {record[bad[0]]}"
    raise Diverged(f"the run has diverged: step {record['step']} has {value}")


def _records(
  pending: list[StepMetrics], last_step: int, tokens_per_step: int
) -> list[dict[str, float]]:
  """One record a step; the one place where metrics leave the devices."""
  first_step = last_step - len(pending) + 1
  return [
    {
      "step": step,
      "tokens": step * tokens_per_step,
      **{name: float(value) for name, value in values._asdict().items()},
    }
    for step, values in enumerate(jax.device_get(pending), start=first_step)
  ]
