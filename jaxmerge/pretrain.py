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

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import config_dict

from jaxmerge.allocator import advice
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.cli import runner
from jaxmerge.config_fields import flatten
from jaxmerge.data import pipeline
from jaxmerge.data.mixture import Mixture, is_local, open_corpus
from jaxmerge.errors import InputError, check
from jaxmerge.evaluation.tasks.task import hash_of
from jaxmerge.files import user_path
from jaxmerge.parallel.distributed import on_every_process, on_first_process
from jaxmerge.parallel.exchange import check_same
from jaxmerge.parallel.topology import topology_devices, without_devices
from jaxmerge.progress import Progress
from jaxmerge.training import branch, loop, run, scoring
from jaxmerge.training.assembly import (
  Describe,
  describer_of,
  plan_of,
  session_of,
)
from jaxmerge.training.compiled_step import compiled_text
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.config_checks import check_config
from jaxmerge.training.plan_text import (
  data_rows,
  devices_text,
  plan_text,
  starts_from,
)
from jaxmerge.training.session import train_in
from jaxmerge.training.start import check_start, start_problems
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
  plan = plan_of(config, parts["start"])
  tell_plan = functools.partial(_tell_plan, config, plan, parent, topology)
  if dry_run and not is_local(config.data):
    # It may have to be downloaded, or take hours to tokenize.
    on_first_process(lambda: tell_plan(trainer))
    return
  if not dry_run:  # before minutes of work that would be in vain
    on_first_process(lambda: run.check_free(workdir))
  corpus = _open(config, progress)
  tokenizer = corpus.tokenizer
  trainer = trainer.with_tokenizer(tokenizer.size, tokenizer.end_of_text)
  identity = _identify(config, workdir, trainer, corpus, parts, parent)
  describe = describer_of(config, trainer, corpus, identity, parent)
  train_parts = corpus.train_parts(config.seq_len, config.data.packs_documents)
  if dry_run:
    on_first_process(lambda: tell_plan(trainer, describe, train_parts))
    return
  if trainer.mesh.devices.flat[0].platform == "cpu" and (slow := advice()):
    progress.note("pretrain", slow)
  for name, text in data_rows(config, train_parts).items():
    progress.note("data", f"{name}: {text}")
  progress.note("pretrain", devices_text(trainer))
  train_in(
    session_of(
      config,
      workdir,
      trainer,
      plan,
      corpus,
      train_parts,
      identity,
      describe,
      parent,
      progress,
    )
  )


def _tell_plan(
  config: PretrainConfig,
  plan: loop.Plan,
  parent: Checkpoint | None,
  topology: str,
  trainer: Trainer,
  describe: Describe | None = None,
  train_parts: Sequence[pipeline.Part] = (),
) -> None:
  """Prints what a run will do; `describe` where its corpus is open."""
  begins = starts_from(parent, plan.start, config)
  trains = describe is None and not config.data.tokenizer_path
  rows = data_rows(config, train_parts)
  rows |= scoring.plan_rows(
    config.scoring,
    plan,
    trainer.mesh,
    config.eval_batch_size,
    describe and describe(step=plan.start, leaves={}),
    is_here=not topology,
  )
  print(plan_text(trainer, plan, config, begins, trains, rows))
  if topology:  # minutes later
    print(compiled_text(config, trainer))


def _open(config: PretrainConfig, progress: Progress) -> Mixture:
  corpus = on_every_process(
    lambda: open_corpus(
      config.data, progress=lambda text: progress.note("data", text)
    )
  )
  size, asked = corpus.tokenizer.size, config.data.vocab_size
  if size < asked:
    told = f"the text gives {size} tokens, not the config.data.vocab_size"
    progress.note("data", f"{told} {asked}")
  return corpus


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
  tasks = config.scoring.items
  check_same(lambda: flatten(mine) | {n: hash_of(i) for n, i in tasks.items()})
  identity = on_every_process(lambda: run.check_workdir(workdir, mine))
  if parent is not None:
    problems = start_problems(parent, trainer.config, corpus.tokenizer)
    if config.branch:
      problems += branch.corpus_problems(parent, corpus.identity)
    check(problems)
  return identity


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
