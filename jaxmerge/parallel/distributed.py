"""Start-up of a multi-process JAX job, before anything touches a backend."""

import os

import jax

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
