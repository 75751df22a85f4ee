"""A job of two processes, two devices each, trains as one process does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from jaxmerge.checkpoints.store import restore_params
from jaxmerge.formats.records.metadata import read_metadata
from tests.helpers import ROOT


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def read_metrics(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def train_with_two(workdir: pathlib.Path, *overrides: str) -> None:
  port = free_port()
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "jaxmerge.pretrain"),
        f"--config={ROOT / 'configs/pretrain/tiny.py'}",
        f"--workdir={workdir}",
        "--config.mesh.fsdp=2",
        *overrides,
      ],
      env={
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(2)
  ]
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  codes = [process.returncode for process in processes]
  assert codes == [0, 0], "\n".join(outputs)
  assert "tokens/s" in outputs[0]
  assert "tokens/s" not in outputs[1]


def test_processes_that_share_sequences_feed_the_same_ones(tiny_run, tmp_path):
  """One share of the batch: the context axis spans both processes."""
  workdir = tmp_path / "run"
  train_with_two(
    workdir,
    "--config.mesh.data=1",
    "--config.mesh.fsdp=1",
    "--config.mesh.context=4",
  )
  np.testing.assert_allclose(
    [r["loss"] for r in read_metrics(workdir / "metrics.jsonl")],
    [r["loss"] for r in read_metrics(tiny_run / "metrics.jsonl")],
    atol=1e-4,
  )


def test_two_processes_train_save_and_resume(tiny_run, tmp_path):
  workdir = tmp_path / "run"
  train_with_two(workdir, "--config.num_steps=8")
  train_with_two(workdir)
  alone = read_metrics(tiny_run / "metrics.jsonl")
  together = read_metrics(workdir / "metrics.jsonl")
  assert [r["step"] for r in together] == list(range(1, 17))
  np.testing.assert_allclose(
    [r["loss"] for r in together], [r["loss"] for r in alone], atol=1e-4
  )
  # What four devices in two processes saved, one device here can read.
  first, again = (
    restore_params(w / "checkpoints/16") for w in (tiny_run, workdir)
  )
  np.testing.assert_allclose(
    first["embed"]["embedding"], again["embed"]["embedding"], atol=1e-3
  )
  assert read_metadata(workdir / "checkpoints/16").tokens == 16 * 8 * 32
