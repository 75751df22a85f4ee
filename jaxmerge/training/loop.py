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
from etils import epath

from jaxmerge.checkpoints import inputs, store
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import Diverged
from jaxmerge.formats.records.metadata import Metadata, read_metadata
from jaxmerge.parallel.distributed import on_first_process
from jaxmerge.parallel.mesh import peak_memory
from jaxmerge.parallel.rules import place_batch
from jaxmerge.progress import Progress
from jaxmerge.training import run
from jaxmerge.training.metrics import MetricsWriter
from jaxmerge.training.profile import traced
from jaxmerge.training.step import StepMetrics, TrainState, TrainStep
from jaxmerge.training.trainer import Trainer


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
    peak_speed: tokens/s at the devices' peak; inf where that is not known.
    profile_steps: first and last step to trace, or none.
  """

  start: int
  num_steps: int
  tokens_per_step: int
  log_every: int
  save_every: int
  max_skipped: int = 0
  peak_speed: float = math.inf
  profile_steps: Sequence[int] = ()

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
    plan: from where the run begins.
    identity: from run.check_workdir.
    parent: what the run starts from, or branches off where its plan begins
      with a step; None: parameters drawn by `seed`.
    batches: over the train split, at its start.
    describe: gives the metadata, as store.save_step's; also of `metrics`.

  Raises:
    InputError: another process is at work there, or what is there is damaged.
    Diverged: a loss is not finite.
  """
  state = None
  if not inputs.steps_in(workdir):
    state = _first_state(trainer, plan.start, parent, seed, batches)
  # Whatever can be refused has been before the workdir is taken.
  with (
    run.taken(workdir, identity, tokenizer) as manager,
    contextlib.ExitStack() as stack,
  ):
    start, digest = manager.latest_step() or plan.start, ""
    if start > plan.start:
      path = inputs.step_path(workdir, start)
      metadata = read_metadata(path)
      run.check_resumable(path, metadata, identity)
      state, digest = trainer.resume(path, start, batches), metadata.metrics
    assert state is not None, f"checkpoints of {workdir} have vanished"
    metrics = on_first_process(
      lambda: MetricsWriter(workdir, start, digest, plan.start)
    )
    if metrics is not None:
      stack.enter_context(contextlib.closing(metrics))
      for text in _where(workdir, plan, start, metrics.cut):
        progress.note("pretrain", text)

    def save(step: int, state: TrainState) -> None:
      lines = metrics.sync() if metrics is not None else ""
      described = functools.partial(describe, metrics=lines)
      store.save_step(
        manager, step, state.params, state.opt_state, batches, described
      )

    rest = dataclasses.replace(plan, start=start)
    train_step = stack.enter_context(
      traced(
        trainer.train_step(), start, plan.profile_steps, workdir / "profile"
      )
    )
    placed = (place_batch(trainer.mesh, batch["tokens"]) for batch in batches)
    train(train_step, state, placed, rest, save, validate, metrics, progress)
    store.finish(manager)


def _first_state(
  trainer: Trainer,
  start: int,
  parent: Checkpoint | None,
  seed: int,
  batches: grain.DatasetIterator,
) -> TrainState:
  """The state of a run that has saved nothing; a branch moves the batches."""
  if parent is None:
    return trainer.random_start(seed)
  if start:
    return trainer.resume(parent.path, start, batches)
  return trainer.start_from(parent)


def _where(
  workdir: epath.Path, plan: Plan, start: int, cut: int
) -> Iterator[str]:
  if start > plan.start:
    yield f"going on from step {start}"
    yield from run.notes_on_validation(workdir)
  elif start:
    yield f"branching off at step {start}"
  if cut:
    yield f"metrics of {cut} steps that were not saved are cut"
  if start >= plan.num_steps:
    yield f"config.num_steps {plan.num_steps} is done"


def train(
  train_step: TrainStep,
  state: TrainState,
  batches: Iterator[jax.Array],
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
    batches: each on the devices.
    save: starts saving `(step, state)`; the state may be donated afterwards.
    validate: validation loss in nats/token.
    metrics: None in the processes of a job that write none.

  Raises:
    Diverged: a loss or a gradient is not finite; found out at the next step
      that is logged, as the numbers stay on the devices until then.
  """
  pending = list[StepMetrics]()
  clock, clock_step = time.monotonic(), plan.start
  for step in range(plan.start + 1, plan.num_steps + 1):
    state, step_metrics = train_step(state, next(batches))
    pending.append(step_metrics)
    if not plan.logs_at(step):
      continue
    records = _records(pending, step, plan.tokens_per_step)
    pending = []
    _check(records, plan.max_skipped, metrics)
    elapsed = time.monotonic() - clock
    speed = (step - clock_step) * plan.tokens_per_step / elapsed
    note = f"{_loss(records[-1])}, {speed:,.0f} tokens/s"
    speeds = {"tokens_per_second": speed}
    if math.isfinite(plan.peak_speed):
      speeds["mfu"] = speed / plan.peak_speed
      note += f", MFU {speeds['mfu']:.1%}"
    if clock_step == plan.start and (peak := peak_memory()):
      progress.note("pretrain", peak)
    if plan.saves_at(step):
      records[-1]["validation_loss"] = validate(state)
      _check(records, plan.max_skipped, metrics)
    if metrics is not None:
      metrics.write(records, speeds)
    if plan.saves_at(step):
      save(step, state)
    progress.stage("pretrain", step, plan.num_steps, note)
    # Validation and saving are not part of the training speed.
    clock, clock_step = time.monotonic(), step


def _loss(record: Mapping[str, float]) -> str:
  """The loss of a step in words, and how many have been skipped."""
  skipped = record.get("skipped", 0)
  loss = f"loss {record['loss']:.4f}" if "loss" in record else "step skipped"
  return loss + (f", {skipped:g} skipped" if skipped else "")


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
    raise Diverged(f"the run has diverged: step {record['step']} {why}")


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
