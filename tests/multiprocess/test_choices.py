"""Choices are scored alike by any number of processes."""

import pathlib

import jax
import numpy as np

from jaxmerge.evaluation.evaluators.choices import Choices
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
from tests.evaluation.letters import CONTEXT, ITEMS, Letters, check_same
from tests.helpers import DECODER, random_params
from tests.multiprocess import jobs


def logs(**axes: int) -> np.ndarray:
  mesh = make_mesh(**axes)
  params = random_params()
  task = Choices(
    DECODER, mesh, ITEMS[:3], Letters(), context=CONTEXT, batch_size=4
  )
  places = shardings(params, mesh)
  return task.log_likelihoods(jax.device_put(jax.device_get(params), places))


def in_a_job(folder: pathlib.Path) -> None:
  from jaxmerge.cli import runner

  runner.set_up_jax()
  found_NxC = logs(fsdp=2)
  np.save(folder / f"{jax.process_index()}.npy", found_NxC)
  jax.distributed.shutdown()  # waits for the other


def test_two_processes_give_what_one_does(tmp_path):
  ended = jobs.run_work(tmp_path, in_a_job, tmp_path)
  assert [code for code, _ in ended] == [0, 0], "\n".join(t for _, t in ended)
  alone_NxC = logs()
  for index in range(2):
    found_NxC = np.load(tmp_path / f"{index}.npy")
    check_same(found_NxC, alone_NxC, ITEMS[:3])
