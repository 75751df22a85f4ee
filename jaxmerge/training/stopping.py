"""When a run is to stop before its last step, and the same in all processes.

In one process a signal that the program's handler notes stops it. In a job
JAX takes SIGTERM, where its preemption service is on, and makes all processes
agree on a step (https://docs.jax.dev/en/latest/_autosummary/jax.experimental.
multihost_utils.html); other signals are agreed on where the run logs.
"""

import signal
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmerge.errors import INTERRUPTED, Stopped, Terminated
from jaxmerge.interrupts import Held
from jaxmerge.parallel.distributed import on_every_process
from jaxmerge.training.loop import Plan


class Stopping:
  """Is asked once a step, by loop.train, whether that is the last one.

  One for a whole run, also where it goes back: a stop that a step which has
  diverged could not make is made at the next one, and JAX counts on.

  Args:
    held: gets the signals that the program's handler notes.
  """

  def __init__(self, held: Held, plan: Plan):
    self._held, self._plan = held, plan
    self._number = 0  # that all processes know of
    self._is_job = jax.process_count() > 1
    self._asks_jax = jax.distributed.is_initialized() and bool(
      jax.config.values["jax_enable_preemption_service"]
    )
    self._asked = self._step = 0

  def __call__(self, step: int, check_saves: Callable[[], None]) -> bool:
    """Says whether to stop at a step; in a job all processes ask.

    Args:
      check_saves: raises the InputError of a save that has failed; called where
        the run logs.

    Raises:
      InputError: a save has failed, in any of the processes.
    """
    self._held.begun = True
    self._step = step
    # Not the step: a notice from before the first one is for number 1.
    self._asked += 1
    if self._asks_jax and multihost_utils.reached_preemption_sync_point(
      self._asked
    ):
      self._number = signal.SIGTERM
    if self._plan.logs_at(step):
      on_every_process(check_saves)
      if self._is_job and not self._number:
        mine = np.int32(self._held.first)
        self._number = int(multihost_utils.process_allgather(mine).max())
    if not self._is_job:
      self._number = self._number or self._held.first
    return bool(self._number)

  def end(self) -> None:
    """Raises Stopped if a signal has come, once all is saved."""
    number = self._number or self._held.first
    if not number:
      return
    is_term = number == signal.SIGTERM
    said = f"stopped at step {self._step}, which is saved"
    if self._step < self._plan.num_steps:
      said += "; the same command goes on"
    raise Stopped(said, Terminated.exit_code if is_term else INTERRUPTED)
