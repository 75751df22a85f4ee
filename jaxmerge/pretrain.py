"""Pretrains a decoder and saves its trail of checkpoints.

  python -m jaxmerge.pretrain --config=configs/pretrain/quickstart.py \\
      --workdir=runs/quickstart [--init_from=INPUT] [--config.a.b=v] \\
      [--dry_run [--topology=v5e:2x2]]

Type the same command again to go on from the latest checkpoint.
"""

import sys

from jaxmerge.cli import launch

if __name__ == "__main__":  # before the imports, which take seconds
  sys.exit(launch.run("pretrain"))

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import config_dict

from jaxmerge.allocator import advice
from jaxmerge.checkpoints.inputs import Checkpoint, steps_in
from jaxmerge.cli import runner
from jaxmerge.config_fields import flatten, to_flat
from jaxmerge.data import pipeline
from jaxmerge.data.mixture import Mixture, is_local, open_corpus
from jaxmerge.errors import InputError, check
from jaxmerge.evaluation.evaluators.heldout_loss import HeldOutLoss
from jaxmerge.files import user_path
from jaxmerge.formats.records.metadata import describer
from jaxmerge.parallel.distributed import on_every_process, on_first_process
from jaxmerge.parallel.exchange import check_same
from jaxmerge.parallel.rules import batch_share
from jaxmerge.parallel.topology import topology_devices, without_devices
from jaxmerge.progress import Progress
from jaxmerge.training import branch, loop, merging, run
from jaxmerge.training.compiled_step import compiled_text
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.config_checks import check_config
from jaxmerge.training.plan_text import (
  data_rows,
  devices_text,
  plan_text,
  starts_from,
)
from jaxmerge.training.session import Session, train_in
from jaxmerge.training.speed import peak_speed
from jaxmerge.training.start import check_start, start_problems
from jaxmerge.training.step import TrainState
from jaxmerge.training.tracker import Trackers
from jaxmerge.training.trainer import Trainer


def train(
  config: config_dict.ConfigDict | PretrainConfig,
  workdir: epath.PathLike,
  *,
  init_from: str = "",
  dry_run: bool = False,
  topology: str = "",
  progress: Progress | None = None,
) -> None:
  """Trains to `config.num_steps`, going on from the latest checkpoint.

  Args:
    config: as configs/pretrain/quickstart.py.
    workdir: gets run.json, its tokenizer, metrics.jsonl, what trackers write
      (tensorboard/) and checkpoints/<step>/{params, opt_state, metadata}.
    init_from: an input whose parameters the run starts from, or a step of a
      run that it branches off from (config.branch).
    dry_run: print the plan and stop after the checks. Text of this machine is
      read and tokenized for them, and its tokens are kept for the run.
    topology: with dry_run: of a TPU that need not be there, for which the step
      is compiled; says what memory it takes of each device.
    progress: told how far the work is; None: prints it.

  Raises:
    InputError: the config, the corpus, the workdir or a checkpoint is not
      usable, or another process is at work in the workdir; a trail that is
      already there stays as it was.
    Diverged: a loss is not finite; nothing of that is saved.
    Stopped: a signal, noted by the program's handler or by jax.distributed, has
      ended it, with all of it saved.
  """
  progress = progress or runner.TerminalProgress()
  workdir = user_path(workdir)
  if topology and not dry_run:
    raise InputError("--topology goes with --dry_run")
  devices = topology_devices(topology) if topology else None
  given = config
  config, trainer = on_every_process(lambda: check_config(given, devices))
  parent, parts = on_every_process(
    lambda: check_start(
      workdir,
      init_from,
      config,
      trainer,
      tell=lambda text: progress.note("pretrain", text) if dry_run else None,
      runs_here=not topology,
    )
  )
  plan = _plan_of(config, parts["start"])

  def tell_plan(
    trainer: Trainer,
    trains_tokenizer: bool,
    train_parts: Sequence[pipeline.Part] = (),
  ) -> None:
    begins = starts_from(parent, plan.start, config)
    rows = data_rows(config, train_parts)
    print(plan_text(trainer, plan, config, begins, trains_tokenizer, rows))
    if topology:  # minutes later
      print(compiled_text(config, trainer))

  if dry_run and not is_local(config.data):
    # It may have to be downloaded, or take hours to tokenize.
    trains = not config.data.tokenizer_path
    on_first_process(lambda: tell_plan(trainer, trains_tokenizer=trains))
    return
  if not dry_run:  # before minutes of work that would be in vain
    on_first_process(lambda: run.check_free(workdir))
  corpus = on_every_process(
    lambda: open_corpus(
      config.data, progress=lambda text: progress.note("data", text)
    )
  )
  size = corpus.tokenizer.size
  if size < config.data.vocab_size:
    asked = f"config.data.vocab_size {config.data.vocab_size}"
    progress.note("data", f"the text gives {size} tokens, not the {asked}")
  trainer = trainer.with_tokenizer(size, corpus.tokenizer.end_of_text)
  identity = _identify(config, workdir, trainer, corpus, parts, parent)
  train_parts = corpus.train_parts(config.seq_len, config.data.packs_documents)
  if dry_run:
    on_first_process(
      lambda: tell_plan(
        trainer, trains_tokenizer=False, train_parts=train_parts
      )
    )
    return
  if trainer.mesh.devices.flat[0].platform == "cpu" and (slow := advice()):
    progress.note("pretrain", slow)
  for name, text in data_rows(config, train_parts).items():
    progress.note("data", f"{name}: {text}")
  _train(
    config,
    workdir,
    trainer,
    plan,
    corpus,
    train_parts,
    identity,
    parent,
    progress,
  )


def _plan_of(config: PretrainConfig, start: int) -> loop.Plan:
  return loop.Plan(
    start=start,
    num_steps=config.num_steps,
    tokens_per_step=config.batch_size * config.seq_len,
    log_every=config.log_every,
    save_every=config.save_every,
    max_skipped=config.step.max_skipped,
    roll_backs=config.step.roll_back,
    profile_steps=config.profile_steps,
  )


def _identify(
  config: PretrainConfig,
  workdir: epath.Path,
  trainer: Trainer,
  corpus: Mixture,
  parts: Mapping[str, Any],
  parent: Checkpoint | None,
) -> Mapping[str, Any]:
  """The run's identity, once its tokens are known; refuses what they differ in.

  Args:
    parts: from check_start.
  """
  size = corpus.tokenizer.size
  mine = run.identity(parts, corpus=corpus.identity, vocabulary=size)
  check_same(lambda: flatten(mine))
  identity = on_every_process(lambda: run.check_workdir(workdir, mine))
  if parent is not None:
    problems = start_problems(parent, trainer.config, corpus.tokenizer)
    if config.branch:
      problems += branch.corpus_problems(parent, corpus.identity)
    check(problems)
  return identity


def _train(
  config: PretrainConfig,
  workdir: epath.Path,
  trainer: Trainer,
  plan: loop.Plan,
  corpus: Mixture,
  train_parts: Sequence[pipeline.Part],
  identity: Mapping[str, Any],
  parent: Checkpoint | None,
  progress: Progress,
) -> None:
  model, mesh = trainer.config, trainer.mesh
  progress.note("pretrain", devices_text(trainer))
  peak = peak_speed(model, config.seq_len, mesh)
  plan = dataclasses.replace(plan, peak_speed=peak)
  share, shares = batch_share(mesh)
  batches = pipeline.train_batches(
    train_parts,
    batch_size=config.batch_size,
    seed=config.seed,
    share=share,
    shares=shares,
  )
  split = corpus.held_out(
    "validation",
    seq_len=config.seq_len,
    max_sequences=config.validation_sequences,
  )
  loss = HeldOutLoss(trainer.graph, mesh, split, config.eval_batch_size)
  data = {**branch.data_order(config), "content": identity["content"]}
  describe = describer(
    run_id=identity["run_id"],
    parent=parent.name if parent else "",
    model=model.to_dict(),
    data={**to_flat(config.data), **data},
    corpus=corpus.identity,
    tokenizer=corpus.tokenizer,
    tokens_per_step=plan.tokens_per_step,
    skipped=corpus.skipped.numbers,
  )
  whole = Session(
    workdir,
    trainer,
    plan,
    # What is there of a longer run stays by the rules of that one.
    dataclasses.replace(
      config, num_steps=max([config.num_steps, *steps_in(workdir)])
    ).keep_rules(plan.start),
    identity=identity,
    tokenizer=corpus.tokenizer,
    parent=parent,
    branch_state=config.branch_state,
    seed=config.seed,
    batches=batches,
    describe=describe,
    evaluate=lambda _, state: _losses(loss, state),
    merging=merging.Merging(
      config.merging,
      workdir,
      config.save_every,
      plan.start,
      trainer.abstract_state().params,
      lambda params: loss.score(params).mean,
    ),
    track=lambda step: Trackers(
      config.trackers,
      run_id=identity["run_id"],
      config=to_flat(config),
      workdir=workdir,
      step=step,
      tell=functools.partial(progress.note, "pretrain"),
    ),
    progress=progress,
  )
  train_in(whole)


def _losses(loss: HeldOutLoss, state: TrainState) -> dict[str, float]:
  """Scores the parameters and the averages beside them, in nats/token."""
  trees = {"validation": state.params, **state.averages}
  return {f"{name}_loss": loss.score(tree).mean for name, tree in trees.items()}


def main(argv: Sequence[str]) -> None:
  flags, job = runner.parse(
    argv,
    doc=__doc__ or "",
    configs={"config": ("pretrain", None)},
    strings={
      "workdir": (None, "where the run lives; the same command resumes it"),
      "init_from": (
        "",
        "a checkpoint whose parameters the run starts from (runs/a@600, or "
        "runs/a@600:ema for an average that a run has kept), or, with "
        "--config.branch=True, a step, or a merge of a run's steps, to go on "
        "from with all its state",
      ),
      "topology": (
        "",
        "with --dry_run: a TPU, such as v5e:2x2 or v5e:4x4*2 (two slices), for "
        "which the step is compiled; it need not be there",
      ),
    },
    booleans={
      "dry_run": "check everything, print the plan, stop",
      **runner.RETURN_MEMORY,
    },
  )
  if flags.topology:
    without_devices()
  else:
    runner.set_up_jax(flags, job, asks_for_preemption=not flags.dry_run)
  with runner.TerminalProgress() as progress:
    train(
      flags.config,
      flags.workdir,
      init_from=flags.init_from,
      dry_run=flags.dry_run,
      topology=flags.topology,
      progress=progress,
    )
