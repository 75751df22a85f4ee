"""The training loop: steps, their metrics, and when to save."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from jaxmerge.data.batch import Batch
from jaxmerge.errors import Diverged
from jaxmerge.parallel.mesh import memory_used
from jaxmerge.progress import Progress
from jaxmerge.training.metrics import MetricsWriter
from jaxmerge.training.speed import Stopwatch
from jaxmerge.training.step import StepMetrics, TrainState, TrainStep


@dataclasses.dataclass(frozen=True)
class Plan:
  """Says how long to train, and when to log and to save.

  Attributes:
    start: steps already taken, of the `num_steps` to reach; of a run that has
      not begun 0, or the step that it branches off at.
    tokens_per_step: targets in one global batch.
    log_every: steps between reads of the metrics from the devices.
    save_every: steps between checkpoints; the last step is saved too.
    max_skipped: steps in a row that a guard may skip; one more ends the run.
    roll_backs: how often it may go back instead.
    peak_speed: tokens/s at the devices' peak; inf where that is not known.
    profile_steps: first and last step to trace, or none.
  """

  start: int
  num_steps: int
  tokens_per_step: int
  log_every: int
  save_every: int
  max_skipped: int = 0
  roll_backs: int = 0
  peak_speed: float = math.inf
  profile_steps: Sequence[int] = ()

  def saves_at(self, step: int) -> bool:
    return step % self.save_every == 0 or step == self.num_steps

  def logs_at(self, step: int) -> bool:
    return step % self.log_every == 0 or self.saves_at(step)


def train(
  train_step: TrainStep,
  state: TrainState,
  batches: Iterator[Batch],
  plan: Plan,
  save: Callable[[int, TrainState], None],
  evaluate: Callable[[int, TrainState], Mapping[str, float]],
  metrics: MetricsWriter | None,
  progress: Progress,
  stopping: Callable[[int], bool] = lambda step: False,
) -> None:
  """Trains from `plan.start` to `plan.num_steps`, or to where it is stopped.

  Metrics of a step reach metrics.jsonl before its checkpoint is saved, so a
  run killed anywhere and resumed writes the same file as one never stopped.
  What is not finite is neither written nor saved.

  Args:
    batches: each on the devices.
    save: starts saving `(step, state)`; the state may be donated afterwards.
    evaluate: what is said of `(step, state)` beside its metrics before it is
      saved, such as its validation_loss in nats/token.
    metrics: None in the processes of a job that write none.
    stopping: asked once a step, in every process: is this the last one? It is
      saved then, but not evaluated unless the plan saves there.

  Raises:
    Diverged: a loss or a gradient is not finite; found out at the next step
      that is logged, as the numbers stay on the devices until then.
  """
  pending = list[StepMetrics]()
  watch = Stopwatch(plan.tokens_per_step, plan.peak_speed)
  for step in range(plan.start + 1, plan.num_steps + 1):
    state, step_metrics = train_step(state, watch.next(batches))
    pending.append(step_metrics)
    stops = stopping(step)
    if not (stops or plan.logs_at(step)):
      continue
    records = _records(pending, step, plan.tokens_per_step)
    pending = []
    _check(records, plan.max_skipped, metrics)
    speeds = watch.speeds() | memory_used()
    note = _note(records[-1], speeds)
    if plan.saves_at(step):
      records[-1] |= evaluate(step, state)
      _check(records, plan.max_skipped, metrics)
    if metrics is not None:
      metrics.write(records, speeds)
    if stops or plan.saves_at(step):
      save(step, state)
    progress.stage("pretrain", step, plan.num_steps, note)
    if stops:
      return
    # Validation and saving are not part of the training speed.
    watch.start()


def _note(record: Mapping[str, float], speeds: Mapping[str, float]) -> str:
  """A step in words, what matters least last."""
  loss = f"loss {record['loss']:.4f}" if "loss" in record else "step skipped"
  if skipped := record.get("skipped", 0):
    loss += f", {skipped:g} skipped"
  parts = [f"{loss}, {_short(speeds['tokens_per_second'])} tokens/s"]
  if "mfu" in speeds:
    parts[0] += f", MFU {speeds['mfu']:.1%}"
  parts.append(f"data wait {speeds['data_wait']:.0%}")
  if "device_memory" in speeds:
    limit = speeds.get("device_memory_limit", 0)
    of = f"/{_short(limit)}" if limit else ""
    parts.append(f"{_short(speeds['device_memory'])}{of} GiB")
  parts.append(f"host {_short(speeds['host_memory'])} GiB")
  return "; ".join(parts)


def _short(number: float) -> str:
  """In six columns: 3.1, 63, 30,720, 412k, 1.23M."""
  if number >= 1e5:
    return f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number / 1e3:.0f}k"
  return f"{number:.1f}" if number < 10 else f"{number:,.0f}"


def _check(
  records: Sequence[dict[str, float]],
  max_skipped: int,
  metrics: MetricsWriter | None,
) -> None:
  """Ends a run that has diverged; the steps before that are written."""
  for number, record in enumerate(records):
    bad = [name for name, value in record.items() if not math.isfinite(value)]
    if bad:
      why = f"has {bad[0].replace('_', ' ')} {record[bad[0]]}"
    elif record.get("skipped_in_a_row", 0) > max_skipped:
      why = f"is the last of {record['skipped_in_a_row']:g} skipped in a row"
    else:
      continue
    if metrics is not None and number:
      metrics.write(records[:number], {})
    step = int(record["step"])
    raise Diverged(f"step {step} {why}", step)


def _records(
  pending: list[StepMetrics], last_step: int, tokens_per_step: int
) -> list[dict[str, float]]:
  """One record a step; the one place where metrics leave the devices.

  Of a step that was skipped, numbers that are not finite are left out.
  """
  first_step = last_step - len(pending) + 1
  records: list[dict[str, float]] = []
  for step, found in enumerate(jax.device_get(pending), start=first_step):
    values = {k: v.item() for k, v in found._asdict().items() if v is not None}
    if values.get("skipped_in_a_row"):
      values = {k: v for k, v in values.items() if math.isfinite(v)}
    records.append({"step": step, "tokens": step * tokens_per_step, **values})
  return records
