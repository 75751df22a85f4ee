"""A run in its workdir: from where it stands to its last checkpoint."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from orbax.checkpoint import CheckpointManager

from jaxmerge import interrupts
from jaxmerge.checkpoints import inputs, store
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.data.pipeline import Batches
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import Damaged, Diverged, InputError
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.parallel.distributed import on_every_process, on_first_process
from jaxmerge.parallel.rules import place_batch
from jaxmerge.progress import Progress
from jaxmerge.training import loop, resuming, run, standing
from jaxmerge.training.averages import Lawa
from jaxmerge.training.keep import Policy
from jaxmerge.training.loop import Plan
from jaxmerge.training.merging import Merging
from jaxmerge.training.metrics import (
  VALIDATION,
  MetricsWriter,
  validation_losses,
)
from jaxmerge.training.profile import traced
from jaxmerge.training.saves import Saves
from jaxmerge.training.standing import Standing
from jaxmerge.training.step import TrainState, TrainStep
from jaxmerge.training.stopping import Stopping
from jaxmerge.training.tracker import Trackers
from jaxmerge.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Session:
  """All that a run is made of.

  Attributes:
    plan: from where the run begins.
    rules: say which checkpoints stay.
    identity: from run.check_workdir.
    parent: what the run starts from, or branches off where its plan begins
      with a step; None: parameters drawn by `seed`.
    branch_state: that of the optimiser, where it branches off from a merge.
    batches: over the train split.
    describe: gives the metadata, as store.save_step's; also of `metrics`, the
      `position` and the `roll_backs`.
    evaluate: as loop.train's; gives a validation_loss.
    merging: of its checkpoints, which it scores beside.
    track: opens the trackers of a run that goes on behind a step.
  """

  workdir: epath.Path
  trainer: Trainer
  plan: Plan
  rules: Policy
  identity: Mapping[str, Any]
  tokenizer: Tokenizer
  parent: Checkpoint | None
  branch_state: str
  seed: int
  batches: Batches
  describe: Callable[..., Metadata]
  evaluate: Callable[[int, TrainState], Mapping[str, float]]
  merging: Merging
  track: Callable[[int], Trackers]
  progress: Progress

  def tell(self, text: str) -> None:
    self.progress.note("pretrain", text)


def train_in(session: Session) -> None:
  """Goes on from the newest whole checkpoint of a workdir, which it claims.

  Raises:
    InputError: another process is at work there, no checkpoint there is whole,
      or one cannot be saved.
    Diverged: a loss is not finite, once more than the run may go back.
    Stopped: a signal has ended it, with all of it saved.
  """
  workdir, trainer, plan = session.workdir, session.trainer, session.plan
  first = None
  if not inputs.steps_in(workdir):
    first = standing.first(
      trainer, plan.start, session.parent, session.branch_state, session.seed
    )
  claimed = (workdir, session.identity, session.tokenizer)
  # Whatever can be refused has been before the workdir is taken.
  with run.taken(*claimed) as manager, interrupts.held() as held:
    stopping = Stopping(held, plan)
    at = _newest(session, manager) or first
    assert at is not None, f"checkpoints of {workdir} have vanished"
    train_step = trainer.train_step()
    while True:
      try:
        return _go_on(session, manager, at, train_step, stopping)
      except Diverged as error:
        diverged = error.with_traceback(None)  # whose frames hold the state
      places = (manager, workdir, trainer, plan)
      at = standing.rolled_back(at, diverged, *places, session.tell)


def _newest(session: Session, manager: CheckpointManager) -> Standing | None:
  """At the newest step that is whole; newer ones are set aside."""
  workdir, trainer = session.workdir, session.trainer
  steps = [s for s in manager.all_steps() if s > session.plan.start]
  if not steps:
    return None
  _tell_of_stop(session, steps)
  at, damaged = resuming.newest_whole(
    steps,
    lambda step: standing.saved(workdir, step, session.identity, trainer),
  )
  moved = on_first_process(lambda: [*resuming.set_aside(workdir, damaged)])
  for text in moved or ():
    session.tell(text)
  return at


def _tell_of_stop(session: Session, steps: Sequence[int]) -> None:
  """Says that what is the last step by now was saved by a stop alone."""
  end, workdir = session.plan.num_steps, session.workdir
  temporary = on_every_process(lambda: resuming.temporary_steps(workdir, steps))
  if max(steps) == end and end in temporary:
    session.tell(
      f"step {end} was saved where the run was stopped: it has no validation "
      "loss, and goes when the run goes on to a later one"
    )


def _go_on(
  session: Session,
  manager: CheckpointManager,
  at: Standing,
  train_step: TrainStep,
  stopping: Stopping,
) -> None:
  """Trains from where the run stands to its end."""
  workdir, plan, trainer = session.workdir, session.plan, session.trainer
  with contextlib.ExitStack() as stack:
    metrics = on_first_process(
      lambda: MetricsWriter(workdir, at.step, at.metrics, plan.start)
    )
    if metrics is not None:
      stack.enter_context(contextlib.closing(metrics))
      metrics.track(session.track(at.step))
      for text in _where(workdir, plan, at.step, metrics.cut):
        session.tell(text)
    # Trackers may take their time: checkpoints are whole before they close.
    stack.enter_context(_whole_at_the_end(manager))
    # Once the lines of steps that were not saved are cut.
    losses = validation_losses(workdir) if session.rules.best else {}
    kept = functools.partial(session.rules.kept, losses=losses)
    saves = Saves(workdir, manager, kept)
    lawa = Lawa(
      workdir,
      trainer.averages.lawa,
      plan.save_every,
      plan.start,
      tell=session.tell,
    )
    means: dict[int, dict[str, Any]] = {}

    def save(step: int, state: TrainState) -> None:
      described = functools.partial(
        session.describe,
        metrics=metrics.sync() if metrics is not None else "",
        position=at.position_at(step),
        roll_backs=at.roll_backs,
      )
      items = {**state.items(), **means.pop(step, {})}
      saves.start(step, items, described, temporary=not plan.saves_at(step))

    def measure(step: int, state: TrainState) -> dict[str, float]:
      saves.finish()  # the checkpoints before are whole
      means[step] = lawa(step, state.params)
      averages = {**state.averages, **means[step]}
      found = dict(session.evaluate(step, state._replace(averages=averages)))
      losses[step] = found[VALIDATION]
      merging = session.merging
      if merging.is_due(step) and all(map(math.isfinite, found.values())):
        described = functools.partial(
          session.describe, position=at.position_at(step)
        )
        try:
          found |= merging.measure(step, state.params, described)
        except Damaged as error:  # the run itself takes nothing from them
          session.tell(f"no merge at step {step}: {error.problems[0]}")
      return found

    profiled = traced(
      train_step, at.step, plan.profile_steps, workdir / "profile"
    )
    rest = dataclasses.replace(plan, start=at.step)
    loop.train(
      stack.enter_context(profiled),
      at.state,
      (place_batch(trainer.mesh, b) for b in session.batches(at.position)),
      rest,
      save,
      measure,
      metrics,
      session.progress,
      functools.partial(stopping, check_saves=saves.check),
    )
    saves.finish()
    stopping.end()


@contextlib.contextmanager
def _whole_at_the_end(manager: CheckpointManager) -> Iterator[None]:
  """Waits for the last save, also where the run has diverged or stopped."""
  try:
    yield
  except (Diverged, KeyboardInterrupt):
    with contextlib.suppress(InputError):  # what counts is what is there
      store.finish(manager)
    raise


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
