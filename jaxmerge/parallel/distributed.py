"""Start-up of a multi-process JAX job, before anything touches a backend."""

import os
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmerge.errors import InputError, check

_T = TypeVar("_T")
_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
_NUMBERS = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_CLUSTERS = ("TPU_WORKER_HOSTNAMES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


def start() -> None:
  """Joins the job's other processes, when there are any to join.

  A pod slice, SLURM and Open MPI are recognised by JAX itself; elsewhere set
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
  """
  if jax.distributed.is_initialized():
    return
  if _COORDINATOR in os.environ:
    numbers = [os.environ.get(name, "") for name in _NUMBERS]
    check(
      f"{_COORDINATOR} is set, so {name} must be a whole number, not {value!r}"
      for name, value in zip(_NUMBERS, numbers)
      if not value.isdigit()
    )
    jax.distributed.initialize(
      coordinator_address=os.environ[_COORDINATOR],
      num_processes=int(numbers[0]),
      process_id=int(numbers[1]),
    )
    return
  sizes = [os.environ.get(name, "") for name in _CLUSTERS]
  if any("," in size or (size.isdigit() and int(size) > 1) for size in sizes):
    jax.distributed.initialize()


def is_first_process() -> bool:
  return jax.process_index() == 0


def on_first_process(action: Callable[[], _T]) -> _T | None:
  """Acts in the first process; every process goes on after it.

  Returns the action's value, None in the other processes. What the action
  raises, the first process raises, and the others InputError.
  """
  raised: Exception | None = None
  found: _T | None = None
  if is_first_process():
    try:
      found = action()
    except Exception as error:  # noqa: BLE001  (the others must hear of any)
      raised = error
  if jax.process_count() > 1:
    ended = multihost_utils.broadcast_one_to_all(np.int32(raised is not None))
    if ended and not is_first_process():
      raise InputError("process 0 of the job has ended and says why")
  if raised is not None:
    raise raised
  return found


def check_single_process(verb: str) -> None:
  """Refuses a job of several processes for a verb that works in one."""
  if jax.process_count() > 1:
    raise InputError(
      f"{verb} runs in one process, over all of its devices; this job has "
      f"{jax.process_count()} processes"
    )
