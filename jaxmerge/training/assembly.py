"""The parts of a run, as its config says, put together into a session."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from jaxmerge.checkpoints.inputs import Checkpoint, steps_in
from jaxmerge.config_fields import to_flat
from jaxmerge.data import pipeline
from jaxmerge.data.mixture import Mixture
from jaxmerge.evaluation.evaluators.heldout_loss import HeldOutLoss
from jaxmerge.formats.records.metadata import Metadata, describer
from jaxmerge.parallel.rules import batch_share
from jaxmerge.progress import Progress
from jaxmerge.training import branch, scoring
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.loop import Plan
from jaxmerge.training.merging import Merging
from jaxmerge.training.metrics import VALIDATION
from jaxmerge.training.session import Session
from jaxmerge.training.speed import peak_speed
from jaxmerge.training.step import TrainState
from jaxmerge.training.tracker import Trackers
from jaxmerge.training.trainer import Trainer

# Gives the metadata of a run's checkpoints, as records.metadata.describer.
Describe = Callable[..., Metadata]


def plan_of(config: PretrainConfig, start: int) -> Plan:
  """The plan of a run that begins behind a step."""
  return Plan(
    start=start,
    num_steps=config.num_steps,
    tokens_per_step=config.batch_size * config.seq_len,
    log_every=config.log_every,
    save_every=config.save_every,
    max_skipped=config.step.max_skipped,
    roll_backs=config.step.roll_back,
    profile_steps=config.profile_steps,
  )


def describer_of(
  config: PretrainConfig,
  trainer: Trainer,
  corpus: Mixture,
  identity: Mapping[str, Any],
  parent: Checkpoint | None,
) -> Describe:
  """Gives what makes the metadata of a run's checkpoints.

  Args:
    trainer: with the corpus's tokenizer.
    identity: from run.check_workdir.
    parent: what it starts from.
  """
  data = {**branch.data_order(config), "content": identity["content"]}
  return describer(
    run_id=identity["run_id"],
    parent=parent.name if parent else "",
    model=trainer.config.to_dict(),
    data={**to_flat(config.data), **data},
    corpus=corpus.identity,
    tokenizer=corpus.tokenizer,
    tokens_per_step=config.batch_size * config.seq_len,
    skipped=corpus.skipped.numbers,
  )


def session_of(
  config: PretrainConfig,
  workdir: epath.Path,
  trainer: Trainer,
  plan: Plan,
  corpus: Mixture,
  train_parts: Sequence[pipeline.Part],
  identity: Mapping[str, Any],
  describe: Describe,
  parent: Checkpoint | None,
  progress: Progress,
) -> Session:
  """Opens all that a run trains and is scored on.

  Raises:
    InputError: lists what it cannot be scored on.
  """
  peak = peak_speed(trainer.config, config.seq_len, trainer.mesh)
  plan = dataclasses.replace(plan, peak_speed=peak)
  tell = functools.partial(progress.note, "pretrain")
  loss = _validation(config, trainer, corpus)
  scored = scoring.scorer(
    config.scoring,
    plan,
    describe(step=plan.start, leaves={}),
    trainer.mesh,
    corpus,
    config.eval_batch_size,
    tell,
  )
  return Session(
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
    batches=_batches(config, trainer, train_parts),
    describe=describe,
    evaluate=lambda step, state: _measured(step, state, loss, scored),
    merging=_merging(config, workdir, trainer, plan, loss),
    track=lambda step: Trackers(
      config.trackers,
      run_id=identity["run_id"],
      config=to_flat(config),
      workdir=workdir,
      step=step,
      tell=tell,
    ),
    progress=progress,
  )


def _merging(
  config: PretrainConfig,
  workdir: epath.Path,
  trainer: Trainer,
  plan: Plan,
  loss: HeldOutLoss,
) -> Merging:
  return Merging(
    config.merging,
    workdir,
    config.save_every,
    plan.start,
    trainer.abstract_state().params,
    lambda params: loss.score(params).mean,
  )


def _batches(
  config: PretrainConfig, trainer: Trainer, parts: Sequence[pipeline.Part]
) -> pipeline.Batches:
  share, shares = batch_share(trainer.mesh)
  return pipeline.train_batches(
    parts,
    batch_size=config.batch_size,
    seed=config.seed,
    share=share,
    shares=shares,
  )


def _validation(
  config: PretrainConfig, trainer: Trainer, corpus: Mixture
) -> HeldOutLoss:
  split = corpus.held_out(
    "validation",
    seq_len=config.seq_len,
    max_sequences=config.validation_sequences,
  )
  size = config.eval_batch_size
  return HeldOutLoss(trainer.graph, trainer.mesh, split, size)


def _measured(
  step: int,
  state: TrainState,
  loss: HeldOutLoss,
  scored: Callable[[int, Any], Mapping[str, float]],
) -> dict[str, float]:
  """Scores the parameters and, by their loss, the averages beside them."""
  trees = {VALIDATION: state.params}
  trees |= {f"{name}_loss": tree for name, tree in state.averages.items()}
  found = {name: loss.score(tree).mean for name, tree in trees.items()}
  if all(map(math.isfinite, found.values())):  # else the run ends here
    found |= scored(step, state.params)
  return found
