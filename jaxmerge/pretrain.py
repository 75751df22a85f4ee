"""Pretrains a decoder and saves its trail of checkpoints.

  python -m jaxmerge.pretrain --config=configs/pretrain/quickstart.py \\
      --workdir=runs/quickstart [--init_from=INPUT] [--config.a.b=v] [--dry_run]

Type the same command again to go on from the latest checkpoint.
"""

import sys

from jaxmerge import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("pretrain"))

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grain
from etils import epath
from jax.sharding import Mesh
from ml_collections import config_dict
from orbax.checkpoint import CheckpointManager

from jaxmerge import locks, runner
from jaxmerge.checkpoints import merged, metadata, store, trajectory
from jaxmerge.checkpoints.outputs import check_place
from jaxmerge.checkpoints.sources import open_models
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.config_fields import to_flat
from jaxmerge.data import cache, heldout, pipeline, settings
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.errors import Problems, check
from jaxmerge.evaluation.heldout_loss import HeldOutLoss
from jaxmerge.files import check_can_make, user_path
from jaxmerge.parallel import distributed
from jaxmerge.parallel.rules import batch_share
from jaxmerge.pretrain_config import (
  check_config,
  model_of,
  optimizer_of,
  plan,
)
from jaxmerge.training import loop, run
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.metrics import MetricsWriter
from jaxmerge.training.state import TrainState
from jaxmerge.training.trainer import (
  Trainer,
  start_problems,
)


def train(
  config: config_dict.ConfigDict | PretrainConfig,
  workdir: epath.PathLike,
  *,
  init_from: str = "",
  dry_run: bool = False,
  progress: loop.Progress,
) -> None:
  """Trains to `config.num_steps`, going on from the latest checkpoint.

  Args:
    config: as configs/pretrain/quickstart.py.
    workdir: gets run.json, its tokenizer, metrics.jsonl, tensorboard/ and
      checkpoints/<step>/{params, opt_state, data, metadata}.
    init_from: an input whose parameters the run starts from.
    dry_run: print the plan and stop after the checks.
    progress: called with a stage, steps done, steps in all and a note.

  Raises:
    InputError: the config, the corpus, the workdir or a checkpoint is not
      usable, or another process is at work in the workdir; a trail that is
      already there stays as it was.
    Diverged: a loss is not finite; nothing of that is saved.
  """
  workdir = user_path(workdir)
  config, mesh = check_config(config)
  parent, parts = _check_run(config, mesh, workdir, init_from)
  if dry_run:
    print(plan(config, mesh))
    return
  # Before minutes of work that would be in vain.
  distributed.on_first_process(lambda: _check_free(workdir))
  ready = _prepare(config, mesh, workdir, parent, parts, progress)
  # Whatever can be refused has been before the workdir is taken.
  with contextlib.ExitStack() as stack:
    distributed.on_first_process(lambda: stack.enter_context(_lock(workdir)))
    distributed.on_first_process(
      lambda: run.claim(workdir, ready.identity, ready.corpus.tokenizer)
    )
    manager = store.open_manager(workdir)
    stack.enter_context(contextlib.closing(manager))
    state, start, digest = _first_state(ready, manager, workdir)
    metrics = distributed.on_first_process(
      lambda: MetricsWriter(workdir, start, digest)
    )
    if metrics is not None:
      stack.enter_context(contextlib.closing(metrics))
      note = run.note_on_validation(workdir)
      _say_where(start, config.num_steps, metrics.cut, note, progress)
    stack.enter_context(
      run.naming_what_is_saved(workdir, lambda: store.finish(manager))
    )
    _loop(config, ready, state, start, manager, metrics, progress)


def _lock(workdir: epath.Path) -> contextlib.AbstractContextManager[None]:
  # Inside: what holds the workdir may be read-only.
  return locks.exclusive(workdir / run.NAME, f"the workdir {workdir}")


def _check_free(workdir: epath.Path) -> None:
  if workdir.exists():
    with _lock(workdir):
      pass


class _Ready(NamedTuple):
  """A run that may begin: all of it but its workdir.

  Attributes:
    trainer: model, optimiser and mesh.
    corpus: tokens of all splits.
    identity: of the run.
    parent: what it starts from.
    iterator: over the train split, at its start.
    validation: the loss on the validation split.
    fresh: state of step 0; None where the workdir has checkpoints.
  """

  trainer: Trainer
  corpus: cache.TokenizedCorpus
  identity: Mapping[str, Any]
  parent: Checkpoint | None
  iterator: grain.DatasetIterator
  validation: HeldOutLoss
  fresh: TrainState | None


def _prepare(
  config: PretrainConfig,
  mesh: Mesh,
  workdir: epath.Path,
  parent: Checkpoint | None,
  parts: Mapping[str, Any],
  progress: loop.Progress,
) -> _Ready:
  """Tokenizes, and checks what only the tokens can tell; takes no workdir."""
  corpus = settings.open_corpus(
    config.data, progress=lambda text: progress("data", 0, 0, text)
  )
  size = corpus.tokenizer.size
  if size < config.data.vocab_size:
    asked = f"config.data.vocab_size {config.data.vocab_size}"
    progress("data", 0, 0, f"the text gives {size} tokens, not the {asked}")
  model = model_of(config, size)
  trainer = Trainer.build(model, mesh, *optimizer_of(config))
  identity = run.check_workdir(
    workdir, run.identity(parts, corpus=corpus.fingerprint, vocabulary=size)
  )
  if parent is not None:
    check(start_problems(parent, trainer.config, corpus.tokenizer))
  share, shares = batch_share(mesh)
  iterator = pipeline.train_iterator(
    corpus.splits["train"],
    seq_len=config.seq_len,
    batch_size=config.batch_size,
    seed=config.seed,
    process_index=share,
    process_count=shares,
  )
  validation = _validation(config, trainer, corpus)
  fresh = None
  if not trajectory.steps_in(workdir):
    fresh = (
      trainer.start_from(parent)
      if parent
      else trainer.random_start(config.seed)
    )
  return _Ready(trainer, corpus, identity, parent, iterator, validation, fresh)


def _first_state(
  ready: _Ready, manager: CheckpointManager, workdir: epath.Path
) -> tuple[TrainState, int, str]:
  """Where the run begins: state, step, and digest of its metrics so far."""
  start = manager.latest_step() or 0
  if not start:
    assert ready.fresh is not None, f"checkpoints of {workdir} have vanished"
    return ready.fresh, 0, ""
  path = trajectory.step_path(workdir, start)
  state = ready.trainer.resume(path, ready.identity["run_id"], ready.iterator)
  return state, start, metadata.read_metadata(path).metrics


def _loop(
  config: PretrainConfig,
  ready: _Ready,
  state: TrainState,
  start: int,
  manager: CheckpointManager,
  metrics: MetricsWriter | None,
  progress: loop.Progress,
) -> None:
  trainer, corpus, parent = ready.trainer, ready.corpus, ready.parent
  plan = loop.Plan(
    start=start,
    num_steps=config.num_steps,
    tokens_per_step=config.batch_size * config.seq_len,
    log_every=config.log_every,
    save_every=config.save_every,
  )
  describe = metadata.describer(
    run_id=ready.identity["run_id"],
    parent=parent.name if parent else "",
    model=trainer.config.to_dict(),
    data={
      **to_flat(config.data),
      "globs": list(config.data.globs),
      "seq_len": config.seq_len,
      "content": ready.identity["content"],
    },
    corpus=corpus.fingerprint,
    tokenizer=corpus.tokenizer,
    tokens_per_step=plan.tokens_per_step,
    skipped=corpus.skipped.numbers,
  )

  def save(step: int, state: TrainState) -> None:
    lines = ""
    if metrics is not None:
      metrics.sync()
      lines = metrics.digest
    described = functools.partial(describe, metrics=lines)
    store.save_step(
      manager, step, state.params, state.opt_state, ready.iterator, described
    )

  loop.train(
    state,
    trainer.train_step(),
    ready.iterator,
    trainer.mesh,
    plan,
    save=save,
    validate=lambda state: ready.validation(state.params).nats_per_token,
    metrics=metrics,
    progress=progress,
  )
  store.finish(manager)


def _check_run(
  config: PretrainConfig,
  mesh: Mesh,
  workdir: epath.Path,
  init_from: str,
) -> tuple[Checkpoint | None, dict[str, Any]]:
  """Refuses what can be known before a text is tokenized; writes nothing.

  Returns:
    The checkpoint to start from, and what is known of the run's identity.
  """
  problems = Problems()
  problems(lambda: check_can_make(workdir))
  problems(lambda: check_place(workdir))
  opened = problems(lambda: open_models([init_from])) if init_from else []
  parent = opened[0] if opened else None
  path = config.data.tokenizer_path
  tokenizer = load_tokenizer(path) if path else None
  if parent is not None:
    problems.extend(start_problems(parent, model_of(config), tokenizer))
  content = problems(lambda: settings.content_hash(config.data))
  problems.check()
  parts = run.known_parts(
    to_flat(config),
    content=content or "",
    parent=merged.identity(parent) if parent else "",
    tokenizer=tokenizer.hash if tokenizer else "",
  )
  run.check_workdir(workdir, parts)
  if tokenizer is not None:
    run.check_tokenizer(workdir, tokenizer)
  run.check_trail(workdir)
  return parent, parts


def _say_where(
  start: int, num_steps: int, cut: int, note: str, progress: loop.Progress
) -> None:
  if start:
    progress("pretrain", 0, 0, f"going on from step {start}")
  if start and note:
    progress("pretrain", 0, 0, note)
  if cut:
    lost = f"metrics of {cut} steps that were not saved are cut"
    progress("pretrain", 0, 0, lost)
  if start >= num_steps:
    progress("pretrain", 0, 0, f"config.num_steps {num_steps} is done")


def _validation(
  config: PretrainConfig,
  trainer: Trainer,
  corpus: cache.TokenizedCorpus,
) -> HeldOutLoss:
  split = heldout.held_out(
    corpus.splits["validation"],
    corpus.bytes_per_token_V,
    seq_len=config.seq_len,
    max_sequences=config.validation_sequences,
  )
  return HeldOutLoss(trainer.graph, trainer.mesh, split, config.eval_batch_size)


def main(argv: Sequence[str]) -> None:
  flags = runner.parse(
    argv,
    doc=__doc__ or "",
    configs={"config": ("pretrain", None)},
    strings={
      "workdir": (None, "where the run lives; the same command resumes it"),
      "init_from": ("", "a checkpoint whose parameters the run starts from"),
    },
    booleans={"dry_run": "check everything, print the plan, stop"},
  )
  runner.set_up_jax()
  train(
    flags.config,
    flags.workdir,
    init_from=flags.init_from,
    dry_run=flags.dry_run,
    progress=runner.TerminalProgress(),
  )
