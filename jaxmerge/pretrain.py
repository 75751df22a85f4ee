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
from collections.abc import Sequence

from etils import epath
from jax.sharding import Mesh
from ml_collections import config_dict

from jaxmerge import runner
from jaxmerge.checkpoints import merged, metadata, store, trajectory
from jaxmerge.data import cache, heldout, pipeline, sections, settings
from jaxmerge.data.tokenizer import load_tokenizer, vocabulary_size
from jaxmerge.errors import InputError, check
from jaxmerge.evaluation.heldout_loss import HeldOutLoss
from jaxmerge.files import (
  check_can_make,
  make_directory,
  user_path,
  write_text,
)
from jaxmerge.model.config import DecoderConfig, option_types
from jaxmerge.parallel import distributed
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import batch_share
from jaxmerge.training import loop, optimizer, run
from jaxmerge.training.metrics import MetricsWriter
from jaxmerge.training.trainer import Trainer, batch_problems, plan_text

_MODEL: runner.Schema = {
  "width": int,
  "depth": int,
  "num_heads": int,
  "num_kv_heads": int,
  "mlp_width": int,
  "rope_theta": float,
  "norm_eps": float,
  "tied": bool,
  "dtype": str,
  "vocab_multiple": int,
  "remat": bool,
}
SCHEMA: runner.Schema = {
  "seed": int,
  "num_steps": int,
  "batch_size": int,
  "seq_len": int,
  "log_every": int,
  "save_every": int,
  "validation_sequences": int,
  "eval_batch_size": int,
  "data": sections.SCHEMA,
  "model": _MODEL,
  "optimizer": {
    "learning_rate": float,
    "warmup_steps": int,
    "b1": float,
    "b2": float,
    "weight_decay": float,
    "clip_norm": float,
  },
  "mesh": {"data": int, "fsdp": int, "tensor": int},
}
_POSITIVE = [
  "num_steps",
  "batch_size",
  "seq_len",
  "log_every",
  "save_every",
  "validation_sequences",
  "eval_batch_size",
]


def train(
  config: config_dict.ConfigDict,
  workdir: epath.PathLike,
  *,
  init_from: str = "",
  dry_run: bool = False,
  progress: loop.Progress,
) -> None:
  """Trains to `config.num_steps`, going on from the latest checkpoint.

  Args:
    config: as configs/pretrain/quickstart.py.
    workdir: gets run.json, tokenizer.json, metrics.jsonl, tensorboard/ and
      checkpoints/<step>/{params, opt_state, data, metadata}.
    init_from: an input whose parameters the run starts from.
    dry_run: print the plan and stop after the checks.
    progress: called with a stage, steps done, steps in all and a note.

  Raises:
    InputError: the config, the corpus, the workdir or a checkpoint is not
      usable; a trail that is already in the workdir stays as it was.
  """
  workdir = user_path(workdir)
  mesh = check_config(config)
  parent = trajectory.open_inputs([init_from])[0] if init_from else None
  check_can_make(workdir)
  if dry_run:
    print(_plan(config, mesh))
    return
  corpus = settings.open_corpus(
    config.data, progress=lambda text: progress("data", 0, 0, text)
  )
  trainer = _build(config, mesh, vocabulary_size(corpus.tokenizer))
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
  identity = run.identity(
    config.to_dict(),
    corpus.fingerprint,
    merged.identity(parent) if parent else "",
  )

  make_directory(workdir)

  def claim() -> None:
    run.claim(workdir, identity)
    write_text(workdir / "tokenizer.json", corpus.tokenizer.to_str())

  distributed.on_first_process(claim)
  manager = store.open_manager(workdir)
  latest = manager.latest_step()
  if latest is not None:
    path = trajectory.step_path(workdir, latest)
    state = trainer.resume(path, identity["run_id"], iterator)
    progress("pretrain", 0, 0, f"going on from step {latest}")
    if latest >= config.num_steps:
      progress("pretrain", 0, 0, f"config.num_steps {config.num_steps} is done")
  elif parent is not None:
    state = trainer.start_from(parent, corpus.tokenizer.to_str())
  else:
    state = trainer.random_start(config.seed)
  plan = loop.Plan(
    start=latest or 0,
    num_steps=config.num_steps,
    tokens_per_step=config.batch_size * config.seq_len,
    log_every=config.log_every,
    save_every=config.save_every,
  )
  describe = metadata.describer(
    run_id=identity["run_id"],
    parent=parent.name if parent else "",
    model=trainer.config.to_dict(),
    data={**run.flatten(config.data), "seq_len": config.seq_len},
    corpus=corpus.fingerprint,
    tokenizer=corpus.tokenizer.to_str(),
    tokens_per_step=plan.tokens_per_step,
  )
  with contextlib.ExitStack() as stack:
    stack.enter_context(contextlib.closing(manager))
    metrics = None
    if distributed.is_first_process():
      metrics = MetricsWriter(workdir, restored_step=plan.start)
      stack.enter_context(contextlib.closing(metrics))
    loop.train(
      state,
      trainer.train_step(),
      iterator,
      mesh,
      plan,
      save=lambda step, state: store.save_step(
        manager, step, state.params, state.opt_state, iterator, describe
      ),
      validate=lambda state: validation(state.params).nats_per_token,
      metrics=metrics,
      progress=progress,
    )
    store.finish(manager)


def check_config(config: config_dict.ConfigDict) -> Mesh:
  """Refuses what is wrong with a config before anything is read.

  Returns:
    The mesh that it asks for.
  """
  runner.check_config(config, _schema(config))
  check(
    [
      f"config.{key} must be positive, got {config[key]}"
      for key in _POSITIVE
      if config[key] < 1
    ]
    + optimizer.rate_problems(
      config.optimizer.learning_rate, config.optimizer.warmup_steps
    )
  )
  mesh = make_mesh(**config.mesh)
  check(
    problem
    for name in ("batch_size", "eval_batch_size")
    for problem in batch_problems(name, config[name], mesh)
  )
  _build(config, mesh, _vocabulary_size(config.data))
  return mesh


def _schema(config: config_dict.ConfigDict) -> runner.Schema:
  """With the options of the model that the config names; a Llama has none."""
  if "model" not in config or not isinstance(config.model, type(config)):
    return SCHEMA
  options = {k: t for k, t in option_types().items() if k in config.model}
  return {**SCHEMA, "model": {**_MODEL, **options}}


def _vocabulary_size(data: config_dict.ConfigDict) -> int:
  """Of the tokenizer that is given, or of the one that will be trained.

  A short text may give fewer tokens than asked for.
  """
  if not data.tokenizer_path:
    return data.vocab_size
  size = vocabulary_size(load_tokenizer(data.tokenizer_path))
  if data.vocab_size not in (0, size):
    raise InputError(
      f"config.data.vocab_size is {data.vocab_size}, but the tokenizer of "
      f"config.data.tokenizer_path has {size} tokens; 0 takes what it has"
    )
  return size


def _build(
  config: config_dict.ConfigDict, mesh: Mesh, vocab_size: int
) -> Trainer:
  knobs = config.optimizer
  schedule = optimizer.warmup_constant(knobs.learning_rate, knobs.warmup_steps)
  return Trainer.build(
    DecoderConfig(vocab_size=vocab_size, **config.model),
    mesh,
    optimizer.adamw(
      schedule,
      b1=knobs.b1,
      b2=knobs.b2,
      weight_decay=knobs.weight_decay,
      clip_norm=knobs.clip_norm,
    ),
    schedule,
  )


def _plan(config: config_dict.ConfigDict, mesh: Mesh) -> str:
  return plan_text(
    DecoderConfig(vocab_size=_vocabulary_size(config.data), **config.model),
    mesh,
    steps=config.num_steps,
    saves=-(-config.num_steps // config.save_every),
    tokens=config.num_steps * config.batch_size * config.seq_len,
  )


def _validation(
  config: config_dict.ConfigDict,
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
    configs={"config": None},
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
