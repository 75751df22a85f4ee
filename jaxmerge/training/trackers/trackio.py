"""Trackio: in a database of this machine, or a Space of Hugging Face."""

import os
from collections.abc import Mapping, Sequence

from jaxmerge.training.tracker import TRACKERS, TrackedRun, TrackerRecord


class Trackio:
  """Goes on with the run of the same name, if the project has it."""

  def __init__(self, run: TrackedRun):
    import trackio

    self._run = trackio.init(
      project=os.environ.get("TRACKIO_PROJECT", "jaxmerge"),
      name=run.id,  # by which it is found again
      resume="allow",
      config=dict(run.config),
      embed=False,  # a notebook gets no server that it did not ask for
    )

  def log(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    for step, values in rows:
      self._run.log(dict(values), step=step)

  def close(self) -> None:
    self._run.finish()


TRACKERS.register(
  TrackerRecord(
    "trackio", "Trackio (huggingface.co/docs/trackio)", Trackio, "trackio"
  )
)
