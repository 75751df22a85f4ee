"""A run's standing: at its start, at a saved step, or rolled back to some."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from orbax.checkpoint import CheckpointManager

from jaxmerge.checkpoints import inputs, store
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.errors import Damaged, Diverged, grouped
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.merging.trail import mean_of
from jaxmerge.parallel.distributed import on_every_process, on_first_process
from jaxmerge.training import branch, resuming, run
from jaxmerge.training.loop import Plan
from jaxmerge.training.saves import delete
from jaxmerge.training.step import ROLLED_BACK, TrainState
from jaxmerge.training.trainer import Trainer


class Standing(NamedTuple):
  """The point that a run has come to.

  Attributes:
    step: steps taken.
    position: batches of its data that lie behind it.
    metrics: digest of its metrics up to there, "" if not known.
    roll_backs: how often it has gone back after it diverged.
  """

  state: TrainState
  step: int
  position: int
  metrics: str = ""
  roll_backs: int = 0

  def position_at(self, step: int) -> int:
    """Batches that lie behind a later step."""
    return self.position + step - self.step


def first(
  trainer: Trainer,
  start: int,
  parent: Checkpoint | None,
  branch_state: str,
  seed: int,
) -> Standing:
  """The standing of a run that has saved nothing, as Session says."""
  if parent is None:
    return Standing(trainer.random_start(seed), 0, 0)
  if not start:
    return Standing(trainer.start_from(parent), 0, 0)
  position = parent.metadata.position or start
  state = branch.start(parent, branch_state, trainer)
  return Standing(state, start, position)


def saved(
  workdir: epath.Path, step: int, identity: Mapping[str, Any], trainer: Trainer
) -> Standing:
  """At a step of its own that it has saved; Damaged where it is not whole."""
  path = inputs.step_path(workdir, step)
  metadata = on_every_process(lambda: store.check_step(path))
  run.check_resumable(path, metadata, identity)
  position = metadata.position or step
  told = (metadata.metrics, metadata.roll_backs)
  return Standing(trainer.resume(path, step), step, position, *told)


def rolled_back(
  at: Standing,
  diverged: Diverged,
  manager: CheckpointManager,
  workdir: epath.Path,
  trainer: Trainer,
  plan: Plan,
  tell: Callable[[str], None],
) -> Standing:
  """At the mean of the last checkpoints, with the newest one's state.

  The data goes on behind the batch of the step that shows it. Killed before
  the next checkpoint is whole, the run comes to the same step and goes back
  again, as often as before.

  Args:
    at: where the run stood before it diverged.
    tell: gets a line that says so.

  Raises:
    Diverged: there is no checkpoint, or the run may go back no more.
  """
  if at.roll_backs >= plan.roll_backs:
    raise diverged
  store.finish(manager)
  # By their numbers: those of a run that was not stopped on the way.
  there = inputs.steps_in(workdir)
  steps = [
    step
    for step in there
    if plan.start < step < diverged.step and step % plan.save_every == 0
  ]
  target = trainer.abstract_state().params
  steps, damaged = _whole(workdir, steps, target)
  if not steps:
    raise diverged
  newest = steps[-1]
  aside = [problem for problem in damaged if problem.step > newest]
  moved = on_first_process(lambda: [*resuming.set_aside(workdir, aside)])
  for text in moved or ():
    tell(text)
  # Metrics are cut back to it, behind which no other step could go on.
  gone = {step for step in there if step > newest} - {p.step for p in aside}
  on_first_process(lambda: delete(workdir / "checkpoints", sorted(gone)))
  paths = [inputs.step_path(workdir, step) for step in steps]
  params = mean_of(paths, "params", target)
  state = trainer.resume(paths[-1], newest)._replace(params=params)
  number = at.roll_backs + 1
  named = "the mean of steps " if steps[1:] else "step "
  tell(
    f"{diverged}; roll back {number} of {plan.roll_backs}, to "
    f"{named}{', '.join(map(str, steps))}, behind the batches so far"
    + (f"; later steps go: {', '.join(map(str, sorted(gone)))}" if gone else "")
  )
  metrics = read_metadata(paths[-1]).metrics
  position = at.position_at(diverged.step)
  return Standing(state, newest, position, metrics, number)


def _whole(
  workdir: epath.Path, steps: Sequence[int], target: Any
) -> tuple[list[int], list[resuming.Problem]]:
  """The newest steps whose parameters can be read, and those that are damaged.

  Both in increasing order; no more of the first than a run goes back to.
  """
  found, damaged = list[int](), list[resuming.Problem]()
  for step in reversed(steps):
    if len(found) == ROLLED_BACK:
      break
    try:
      store.restore_item(inputs.step_path(workdir, step), "params", target)
    except Damaged as error:
      [said] = grouped(error.problems)
      damaged.insert(0, resuming.Problem(step, said))
    else:
      found.insert(0, step)
  return found, damaged
