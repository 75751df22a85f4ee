"""A run's saves: each is checked, and those of a stop go when they may."""

import functools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from etils import epath
from orbax.checkpoint import CheckpointManager

from jaxmerge.checkpoints import store
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.parallel.distributed import on_every_process, on_first_process
from jaxmerge.training.resuming import temporary_steps

# Of a step that is being deleted; no reader takes it for a step.
_DELETED = ".{}.deleted"


class Saves:
  """Saves the steps of a run one after another; all processes call it.

  What a stop has saved there goes when the next regular step is whole, as the
  one that the run goes on from may be; so does what is not to be kept.

  Args:
    kept: of the regular steps there are, in increasing order, those that stay.
  """

  def __init__(
    self,
    workdir: epath.Path,
    manager: CheckpointManager,
    kept: Callable[[Sequence[int]], Container[int]],
  ):
    self._manager = manager
    self._kept = kept
    manager.reload()  # some may just have been set aside
    steps = manager.all_steps()
    self._temporary = on_every_process(lambda: temporary_steps(workdir, steps))
    self._last: int | None = None
    self._is_temporary = False
    if steps and max(steps) not in self._temporary:
      self._delete_old()

  def start(
    self,
    step: int,
    items: Mapping[str, Any],
    describe: Callable[..., Metadata],
    temporary: bool = False,
  ) -> None:
    """As store.save_step, when the save before it is whole."""
    self.finish()
    described = functools.partial(describe, temporary=temporary)
    store.save_step(self._manager, step, items, described)
    self._last, self._is_temporary = step, temporary

  def check(self) -> None:
    """Raises InputError if a save has failed by now; waits for none."""
    if not self._manager.is_saving_in_progress():
      store.finish(self._manager)

  def finish(self) -> None:
    """Waits until the last save is whole.

    Raises:
      InputError: it is not.
    """
    store.finish(self._manager)
    if self._last is None:
      return
    path = self._manager.directory / str(self._last)
    on_first_process(lambda: store.check_step(path))
    if self._is_temporary:
      earlier = sorted(self._temporary)
      # One of them stays, should this one be damaged.
      self._delete(earlier[:-1])
      self._temporary = [*earlier[-1:], self._last]
    else:
      self._delete_old()
    self._last = None

  def _delete_old(self) -> None:
    """Deletes what goes, as a later step is whole."""
    steps = sorted({*self._manager.all_steps()} - {*self._temporary})
    kept = self._kept(steps)
    self._delete([*self._temporary, *(s for s in steps if s not in kept)])
    self._temporary = []

  def _delete(self, steps: Sequence[int]) -> None:
    folder = self._manager.directory
    on_first_process(lambda: delete(folder, steps))
    if steps:
      self._manager.reload()


def delete(folder: epath.Path, steps: Sequence[int]) -> None:
  """Deletes steps, each at once for whoever looks, if killed in between too.

  Also what one that was killed has begun to. Where nothing can be renamed, on
  an object store, a step is none any more once its metadata is gone.
  """
  for step in steps:
    path = folder / str(step)
    if "://" in str(folder):
      (path / "metadata").rmtree(missing_ok=True)
      path.rmtree(missing_ok=True)
    elif path.exists():
      path.rename(folder / _DELETED.format(step))
  if "://" not in str(folder):
    for gone in folder.glob(_DELETED.format("*")):
      gone.rmtree()
