"""Start-up of a multi-process JAX job, before anything touches a backend."""

import os

import jax
from jax.experimental import multihost_utils

from jaxmerge.errors import InputError

_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
_CLUSTERS = ("TPU_WORKER_HOSTNAMES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


def start() -> None:
  """Joins the job's other processes, when there are any to join.

  A pod slice, SLURM and Open MPI are recognised by JAX itself; elsewhere set
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
  """
  if jax.distributed.is_initialized():
    return
  if _COORDINATOR in os.environ:
    jax.distributed.initialize(
      coordinator_address=os.environ[_COORDINATOR],
      num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
      process_id=int(os.environ["JAX_PROCESS_ID"]),
    )
  elif any(_several(os.environ.get(name, "")) for name in _CLUSTERS):
    jax.distributed.initialize()


def _several(value: str) -> bool:
  return "," in value or (value.isdigit() and int(value) > 1)


def is_first_process() -> bool:
  return jax.process_index() == 0


def wait_for_all(what: str) -> None:
  """Returns once every process of the job has come to this point."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def check_single_process(verb: str) -> None:
  """Refuses a job of several processes for a verb that works in one."""
  if jax.process_count() > 1:
    raise InputError(
      f"{verb} runs in one process, over all of its devices; this job has "
      f"{jax.process_count()} processes"
    )
