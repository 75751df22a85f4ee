"""TensorBoard: event files in `<workdir>/tensorboard`."""

from collections.abc import Mapping, Sequence

from tensorboardX import SummaryWriter

from jaxmerge.training.tracker import TRACKERS, TrackedRun, TrackerRecord


class TensorBoard:
  """Writes a new event file, which takes back all of the steps to come."""

  def __init__(self, run: TrackedRun):
    self._events = SummaryWriter(
      logdir=str(run.workdir / "tensorboard"),
      purge_step=run.step + 1,
      # Names alone tell seconds apart: one run may be that short.
      filename_suffix=f".{run.step:010d}",
    )

  def log(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    for step, values in rows:
      for name, value in values.items():
        self._events.add_scalar(name, value, step)
    self._events.flush()

  def close(self) -> None:
    self._events.close()


TRACKERS.register(
  TrackerRecord(
    "tensorboard", "event files in <workdir>/tensorboard", TensorBoard
  )
)
