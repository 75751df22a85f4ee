"""Weights & Biases, or a server of one's own that speaks as it does."""

import os
from collections.abc import Mapping, Sequence

from jaxmerge.training.tracker import TRACKERS, TrackedRun, TrackerRecord


class Wandb:
  """Goes on with the run of the same id, if the project has it.

  The x-axis is `step`, a value like the others: W&B's own, which counts what
  is logged, never goes back, and would drop the steps that are logged again.
  """

  def __init__(self, run: TrackedRun):
    import wandb

    is_local = "://" not in str(run.workdir)
    self._run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", "jaxmerge"),
      id=run.id,
      name=os.environ.get("WANDB_NAME", run.name),
      resume="allow",
      config=dict(run.config),
      allow_val_change=True,  # of what changes no numbers, when it goes on
      dir=str(run.workdir) if is_local else None,
    )
    self._run.define_metric("*", step_metric="step")

  def log(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    for step, values in rows:
      self._run.log({"step": step, **values})

  def close(self) -> None:
    self._run.finish()


TRACKERS.register(
  TrackerRecord("wandb", "Weights & Biases (wandb.ai)", Wandb, package="wandb")
)
