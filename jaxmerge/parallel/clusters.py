"""Finds out whether this process is one of a job, and of which.

Nothing here touches a backend or a network.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxmerge.errors import InputError, Problems

# Flags of every verb; each may be given by a variable of the environment.
FLAGS: Mapping[str, str] = {
  "coordinator_address": "host:port of process 0, for a job of several "
  "processes that no cluster starts",
  "num_processes": "of the job; 1: this one alone, whatever the cluster says",
  "process_id": "of this process in the job, from 0 on",
}
_SLURM = (
  "SLURM_JOB_ID",
  "SLURM_STEP_NODELIST",
  "SLURM_NTASKS",
  "SLURM_PROCID",
  "SLURM_LOCALID",
)


def variable(flag: str) -> str:
  """The variable of the environment that stands for a flag."""
  return f"JAX_{flag.upper()}"


@dataclasses.dataclass(frozen=True)
class Job:
  """A job, as far as it is known; JAX asks the cluster for the rest.

  Attributes:
    name: of all its processes, as its cluster calls them.
  """

  name: str
  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None

  @property
  def arguments(self) -> dict[str, Any]:
    """Arguments of jax.distributed.initialize."""
    return {flag: getattr(self, flag) for flag in FLAGS}

  def __str__(self) -> str:
    """For example "4 processes at host:1234 (this is process 2)"."""
    count = "" if self.num_processes is None else f"{self.num_processes} "
    at = f" at {self.coordinator_address}" if self.coordinator_address else ""
    me = f" (this is process {self.process_id})"
    return f"{count}{self.name}{at}" + me * (self.process_id is not None)


def find_job(
  flags: Mapping[str, str], environment: Mapping[str, str]
) -> Job | None:
  """The job that this process belongs to; None: it is alone.

  Args:
    flags: as typed, of FLAGS; "" where one is not.
    environment: of this process, after JAX has been imported, which notes
      there whether this is a TPU's machine.

  Raises:
    InputError: lists what is wrong with the flags, or what is missing.
  """
  given = {
    flag: flags.get(flag, "") or environment.get(variable(flag), "")
    for flag in FLAGS
  }
  problems = Problems()
  for flag in ("num_processes", "process_id"):
    if given[flag] and not given[flag].isdecimal():
      problems.add(
        f"{_called(flag)} must be a whole number, not {given[flag]!r}"
      )
  address = given["coordinator_address"]
  if address and not re.fullmatch(r"\S+:\d+", address):
    problems.add(
      f"{_called('coordinator_address')} must be host:port, not {address!r}"
    )
  problems.check()
  count, number = (
    int(given[flag]) if given[flag] else None
    for flag in ("num_processes", "process_id")
  )
  if count is not None and (number or 0) >= count:
    raise InputError(
      f"{_called('process_id')} must be below {_called('num_processes')}, got "
      f"{number or 0} of {count}"
    )
  if count == 1:
    return None
  found = next(filter(None, (look(environment) for look in _CLUSTERS)), None)
  if not any(given.values()):
    return found
  if found is None:
    problems.extend(
      f"{_called(flag)} is missing: of a job that no cluster starts, each "
      "process is to know all three"
      for flag, value in given.items()
      if not value
    )
    problems.check()
    return Job("processes", address, count, number)
  return Job(
    found.name,
    address or found.coordinator_address,
    found.num_processes if count is None else count,
    found.process_id if number is None else number,
  )


def _called(flag: str) -> str:
  return f"--{flag} ({variable(flag)})"


def _number(environment: Mapping[str, str], name: str) -> int:
  text = environment.get(name, "")
  return int(text) if text.isdecimal() else 0


def _slurm(environment: Mapping[str, str]) -> Job | None:
  """A job step of srun; a batch script alone has no STEP_NODELIST."""
  count = _number(environment, "SLURM_NTASKS")
  if count < 2 or not all(name in environment for name in _SLURM):
    return None
  name = f"tasks of Slurm job {environment['SLURM_JOB_ID']}"
  return Job(name, None, count, _number(environment, "SLURM_PROCID"))


def _open_mpi(environment: Mapping[str, str]) -> Job | None:
  count = _number(environment, "OMPI_COMM_WORLD_SIZE")
  if count < 2:
    return None
  number = _number(environment, "OMPI_COMM_WORLD_RANK")
  return Job("processes of Open MPI", None, count, number)


def _tpu(environment: Mapping[str, str]) -> Job | None:
  """Hosts of a TPU slice, or of several.

  On Google's Kubernetes the environment lists them, on other machines with a
  TPU a metadata server does, which JAX asks; where there is none, JAX or the
  machine's image says so. Who keeps off the TPU (JAX_PLATFORMS=cpu) may be on
  one of the hosts alone.
  """
  if environment.get("JAX_PLATFORMS") == "cpu":
    return None
  hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get(
    "TPU_WORKER_HOSTNAMES"
  )
  slices = max(_number(environment, "MEGASCALE_NUM_SLICES"), 1)
  if hosts and (count := slices * (hosts.count(",") + 1)) > 1:
    return Job("hosts of this TPU", None, count)
  # JAX sets the first on a TPU's machine, the other where there is no TPU.
  has_tpu = "TPU_ML_PLATFORM" in environment
  if has_tpu and not hosts and "TPU_SKIP_MDS_QUERY" not in environment:
    return Job("the hosts of this TPU")
  return None


def _kubernetes(environment: Mapping[str, str]) -> Job | None:
  """An indexed job, of which JAX asks the cluster with its own package."""
  names = "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"
  if not all(name in environment for name in names):
    return None
  if importlib.util.find_spec("kubernetes") is None:
    return None
  return Job("the pods of this job")


_CLUSTERS: tuple[Callable[[Mapping[str, str]], Job | None], ...] = (
  _open_mpi,
  _slurm,
  _tpu,
  _kubernetes,
)
