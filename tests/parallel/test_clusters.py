"""Which job a process takes itself to be in, by flags and environment."""

import pytest

from jaxmerge.errors import InputError
from jaxmerge.parallel.clusters import Job, find_job

SLURM = {
  "SLURM_JOB_ID": "17",
  "SLURM_STEP_NODELIST": "node[1-2]",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
}
TOLD = {
  "coordinator_address": "host:1234",
  "num_processes": "4",
  "process_id": "2",
}
ON_TPU = {"TPU_ML_PLATFORM": "JAX"}


@pytest.mark.parametrize(
  ("environment", "said"),
  [
    (SLURM, "4 tasks of Slurm job 17 (this is process 2)"),
    (
      {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "0"},
      "3 processes of Open MPI (this is process 0)",
    ),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "2 hosts of this TPU"),
    (
      {"TPU_PROCESS_ADDRESSES": "a:1,b:1", "MEGASCALE_NUM_SLICES": "2"},
      "4 hosts of this TPU",
    ),
    # Google's machines, of which a metadata server tells the rest.
    (ON_TPU, "the hosts of this TPU"),
  ],
)
def test_clusters_are_recognised(environment, said):
  assert str(find_job({}, environment)) == said
  assert find_job({"num_processes": "1"}, environment) is None


@pytest.mark.parametrize(
  "environment",
  [
    {},
    {**SLURM, "SLURM_NTASKS": "1"},
    # A batch script without srun.
    {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"},
    {**ON_TPU, "TPU_WORKER_HOSTNAMES": "localhost"},
    {**ON_TPU, "TPU_SKIP_MDS_QUERY": "1"},
    {**ON_TPU, "JAX_PLATFORMS": "cpu"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
  ],
)
def test_a_process_alone_waits_for_nobody(environment):
  assert find_job({}, environment) is None


def test_flags_and_variables_name_a_job():
  job = Job("processes", "host:1234", 4, 2)
  assert find_job(TOLD, {}) == job
  assert str(job) == "4 processes at host:1234 (this is process 2)"
  variables = {f"JAX_{name.upper()}": value for name, value in TOLD.items()}
  assert find_job({}, variables) == job
  # A flag comes before a variable, and both before the cluster.
  assert find_job({"process_id": "3"}, variables).process_id == 3
  found = find_job({"coordinator_address": "host:1"}, SLURM)
  assert found == Job("tasks of Slurm job 17", "host:1", 4, 2)


def test_all_that_is_wrong_is_told_at_once():
  flags = {"coordinator_address": "host", "num_processes": "x"}
  with pytest.raises(InputError) as caught:
    find_job(flags, {"JAX_PROCESS_ID": "-1"})
  assert caught.value.problems == [
    "--num_processes (JAX_NUM_PROCESSES) must be a whole number, not 'x'",
    "--process_id (JAX_PROCESS_ID) must be a whole number, not '-1'",
    "--coordinator_address (JAX_COORDINATOR_ADDRESS) must be host:port, not "
    "'host'",
  ]
  with pytest.raises(InputError, match="process_id .* below .* got 4 of 4"):
    find_job({**TOLD, "process_id": "4"}, {})
  with pytest.raises(InputError) as caught:
    find_job({"process_id": "1"}, {})
  assert len(caught.value.problems) == 2
