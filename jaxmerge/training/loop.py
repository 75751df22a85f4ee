"""The training loop, from where a workdir stands to the end of its run."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from etils import epath

from jaxmerge.checkpoints import inputs, store
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import Diverged
from jaxmerge.formats.records.metadata import Metadata, read_metadata
from jaxmerge.parallel.distributed import on_first_process
from jaxmerge.parallel.rules import place_batch
from jaxmerge.progress import Progress
from jaxmerge.training import run
from jaxmerge.training.metrics import MetricsWriter
from jaxmerge.training.trainer import StepMetrics, Trainer, TrainState


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


def train_in(
  workdir: epath.Path,
  trainer: Trainer,
  plan: Plan,
  *,
  identity: Mapping[str, Any],
  tokenizer: Tokenizer,
  parent: Checkpoint | None,
  seed: int,
  batches: grain.DatasetIterator,
  describe: Callable[..., Metadata],
  validate: Callable[[TrainState], float],
  progress: Progress,
) -> None:
  """Goes on from the latest checkpoint of a workdir, which it claims.

  Args:
    plan: from step 0.
    identity: from run.check_workdir.
    parent: what the run starts from; None: parameters drawn by `seed`.
    batches: over the train split, at its start.
    describe: gives the metadata, as store.save_step's; also of `metrics`.

  Raises:
    InputError: another process is at work there, or what is there is damaged.
    Diverged: a loss is not finite.
  """
  state = None
  if not inputs.steps_in(workdir):
    state = trainer.start_from(parent) if parent else trainer.random_start(seed)
  # Whatever can be refused has been before the workdir is taken.
  with (
    run.taken(workdir, identity, tokenizer) as manager,
    contextlib.ExitStack() as stack,
  ):
    start, digest = manager.latest_step() or 0, ""
    if start:
      path = inputs.step_path(workdir, start)
      metadata = read_metadata(path)
      run.check_resumable(path, metadata, identity)
      state, digest = trainer.resume(path, start, batches), metadata.metrics
    assert state is not None, f"checkpoints of {workdir} have vanished"
    metrics = on_first_process(lambda: MetricsWriter(workdir, start, digest))
    if metrics is not None:
      stack.enter_context(contextlib.closing(metrics))
      for text in _where(workdir, start, plan.num_steps, metrics.cut):
        progress.note("pretrain", text)

    def save(step: int, state: TrainState) -> None:
      lines = metrics.sync() if metrics is not None else ""
      described = functools.partial(describe, metrics=lines)
      store.save_step(
        manager, step, state.params, state.opt_state, batches, described
      )

    plan = dataclasses.replace(plan, start=start)
    train(trainer, state, batches, plan, save, validate, metrics, progress)
    store.finish(manager)


def _where(
  workdir: epath.Path, start: int, num_steps: int, cut: int
) -> Iterator[str]:
  if start:
    yield f"going on from step {start}"
    yield from run.notes_on_validation(workdir)
  if cut:
    yield f"metrics of {cut} steps that were not saved are cut"
  if start >= num_steps:
    yield f"config.num_steps {num_steps} is done"


def train(
  trainer: Trainer,
  state: TrainState,
  batches: Iterator[dict[str, np.ndarray]],
  plan: Plan,
  save: Callable[[int, TrainState], None],
  validate: Callable[[TrainState], float],
  metrics: MetricsWriter | None,
  progress: Progress,
) -> None:
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
  train_step, pending = trainer.train_step(), list[StepMetrics]()
  clock, clock_step = time.monotonic(), plan.start
  for step in range(plan.start + 1, plan.num_steps + 1):
    tokens = place_batch(trainer.mesh, next(batches)["tokens"])
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
