"""Jobs of several processes on this machine, whatever becomes of them."""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests import forked
from tests.helpers import free_port, with_devices

PATIENCE = 600  # seconds, on a machine that does other things


def run(
  folder: pathlib.Path,
  start: Callable[[int, pathlib.Path, dict[str, str]], Any],
  *,
  processes: int = 2,
  devices: int = 2,
) -> list[tuple[int, str]]:
  """Runs a job; the exit code and the output of each process.

  Args:
    folder: gets their outputs.
    start: a process, by its number, output and changes of the environment.
    devices: of each process.
  """
  port = free_port()
  outputs = [folder / f"{port}-{index}.log" for index in range(processes)]
  started = [
    start(
      index,
      output,
      {
        "XLA_FLAGS": with_devices(devices)["XLA_FLAGS"],
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": f"{processes}",
        "JAX_PROCESS_ID": f"{index}",
        "JAXMERGE_JOIN_SECONDS": "120",
        "JAXMERGE_HEARTBEAT_SECONDS": "20",
        "JAXMERGE_SHUTDOWN_SECONDS": "20",
      },
    )
    for index, output in enumerate(outputs)
  ]
  end = time.monotonic() + PATIENCE
  for process in started:
    process.join(max(end - time.monotonic(), 0))
    process.kill()
    process.join()
  return [
    (process.exitcode, output.read_text())
    for process, output in zip(started, outputs)
  ]


def run_verb(
  folder: pathlib.Path, verb: str, argv: Sequence[str], **job: int
) -> list[tuple[int, str]]:
  """Runs a verb in a job."""
  return run(
    folder,
    lambda _, output, changed: forked.start(verb, argv, output, changed),
    **job,
  )


def run_work(
  folder: pathlib.Path, work: Callable[..., None], *arguments: Any, **job: int
) -> list[tuple[int, str]]:
  """Runs a function of a module in a job."""
  return run(
    folder,
    lambda _, output, changed: forked.start_work(
      work, arguments, output, changed
    ),
    **job,
  )
