"""Trains in a workdir, from where it stands to the end of the run."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
from etils import epath
from orbax.checkpoint import CheckpointManager

from jaxmerge.checkpoints import inputs, store
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.data.cache import TokenizedCorpus
from jaxmerge.formats.records.metadata import Metadata, describer, read_metadata
from jaxmerge.parallel.distributed import on_first_process
from jaxmerge.progress import Progress
from jaxmerge.training import loop, run
from jaxmerge.training.metrics import MetricsWriter
from jaxmerge.training.state import TrainState
from jaxmerge.training.trainer import Trainer


def train(
  workdir: epath.Path,
  trainer: Trainer,
  plan: loop.Plan,
  *,
  corpus: TokenizedCorpus,
  identity: Mapping[str, Any],
  parent: Checkpoint | None,
  seed: int,
  data: Mapping[str, Any],
  batches: grain.DatasetIterator,
  validate: Callable[[TrainState], float],
  progress: Progress,
) -> None:
  """Goes on from the latest checkpoint of a workdir, which it claims.

  Args:
    plan: from step 0.
    identity: from run.check_workdir.
    parent: what the run starts from; None: parameters drawn by `seed`.
    data: says in checkpoints how batches were made.
    batches: over the train split, at its start.
    validate: validation loss in nats/token.

  Raises:
    InputError: another process is at work there, or what is there is damaged.
    Diverged: a loss is not finite.
  """
  fresh = None
  if not inputs.steps_in(workdir):
    fresh = trainer.start_from(parent) if parent else trainer.random_start(seed)
  described = _describer(trainer, plan, corpus, identity, parent, data)
  # Whatever can be refused has been before the workdir is taken.
  with (
    run.taken(workdir, identity, corpus.tokenizer) as manager,
    contextlib.ExitStack() as stack,
  ):
    state, start, digest = fresh, manager.latest_step() or 0, ""
    if start:
      path = inputs.step_path(workdir, start)
      state = trainer.resume(path, identity["run_id"], batches)
      digest = read_metadata(path).metrics
    assert state is not None, f"checkpoints of {workdir} have vanished"
    metrics = on_first_process(lambda: MetricsWriter(workdir, start, digest))
    if metrics is not None:
      stack.enter_context(contextlib.closing(metrics))
      for text in _where(workdir, start, plan.num_steps, metrics.cut):
        progress.note("pretrain", text)
    loop.train(
      state,
      trainer.train_step(),
      batches,
      trainer.mesh,
      dataclasses.replace(plan, start=start),
      save=_saver(manager, batches, described, metrics),
      validate=validate,
      metrics=metrics,
      progress=progress,
    )
    store.finish(manager)


def _describer(
  trainer: Trainer,
  plan: loop.Plan,
  corpus: TokenizedCorpus,
  identity: Mapping[str, Any],
  parent: Checkpoint | None,
  data: Mapping[str, Any],
) -> Callable[..., Metadata]:
  return describer(
    run_id=identity["run_id"],
    parent=parent.name if parent else "",
    model=trainer.config.to_dict(),
    data={**data, "content": identity["content"]},
    corpus=corpus.identity,
    tokenizer=corpus.tokenizer,
    tokens_per_step=plan.tokens_per_step,
    skipped=corpus.skipped.numbers,
  )


def _saver(
  manager: CheckpointManager,
  batches: grain.DatasetIterator,
  describe: Callable[..., Metadata],
  metrics: MetricsWriter | None,
) -> Callable[[int, TrainState], None]:
  def save(step: int, state: TrainState) -> None:
    lines = metrics.sync() if metrics is not None else ""
    described = functools.partial(describe, metrics=lines)
    store.save_step(
      manager, step, state.params, state.opt_state, batches, described
    )

  return save


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
