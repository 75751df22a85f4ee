"""A run in jobs of several processes is the run of one."""

import json
import pathlib

import numpy as np

from jaxmerge.checkpoints.store import restore_params
from jaxmerge.formats.records.metadata import read_metadata
from tests import forked
from tests.helpers import config_file
from tests.multiprocess import jobs


def read_metrics(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def train(workdir: pathlib.Path, *overrides: str, **job: int) -> None:
  argv = [
    f"--config={config_file('pretrain')}",
    f"--workdir={workdir}",
    *overrides,
  ]
  ended = jobs.run_verb(workdir.parent, "pretrain", argv, **job)
  assert {code for code, _ in ended} == {0}, "\n".join(t for _, t in ended)
  told = ["tokens/s" in output for _, output in ended]
  assert told == [True, *[False] * (len(ended) - 1)]


def test_processes_that_share_sequences_feed_the_same_ones(tiny_run, tmp_path):
  """One share of the batch: the context axis spans both processes."""
  workdir = tmp_path / "run"
  train(workdir, "--config.mesh.data=1", "--config.mesh.context=4")
  np.testing.assert_allclose(
    [r["loss"] for r in read_metrics(workdir / "metrics.jsonl")],
    [r["loss"] for r in read_metrics(tiny_run / "metrics.jsonl")],
    atol=1e-4,
  )


def test_a_run_goes_on_with_any_number_of_processes(tiny_run, tmp_path):
  """One, four, two and four, on meshes of eight devices and four."""
  workdir = tmp_path / "run"
  for steps, processes, devices, fsdp in (
    (4, 1, 8, 8),
    (8, 4, 1, 2),
    (12, 2, 4, 4),
    (16, 4, 1, 2),
  ):
    train(
      workdir,
      f"--config.num_steps={steps}",
      f"--config.mesh.fsdp={fsdp}",
      "--config.averages.ema_decay=0.75",
      "--config.averages.lawa=2",
      processes=processes,
      devices=devices,
    )
  alone = read_metrics(tiny_run / "metrics.jsonl")
  together = read_metrics(workdir / "metrics.jsonl")
  assert [r["step"] for r in together] == list(range(1, 17))
  np.testing.assert_allclose(
    [r["loss"] for r in together], [r["loss"] for r in alone], rtol=1e-5
  )
  # One device here can read what any of them has saved.
  for step in (4, 8, 12, 16):
    first, again = (
      restore_params(w / f"checkpoints/{step}") for w in (tiny_run, workdir)
    )
    np.testing.assert_allclose(
      first["embed"]["embedding"], again["embed"]["embedding"], atol=1e-3
    )
  lawa = restore_params(workdir / "checkpoints/16", item="lawa")
  last = [restore_params(workdir / f"checkpoints/{step}") for step in (12, 16)]
  np.testing.assert_allclose(
    lawa["embed"]["embedding"],
    sum(tree["embed"]["embedding"] for tree in last) / 2,
    atol=1e-6,
  )
  assert together[-1]["ema_loss"] > together[-1]["lawa_loss"]
  metadata = read_metadata(workdir / "checkpoints/16")
  assert metadata.tokens == 16 * 8 * 32
  assert metadata.position == 16


def test_processes_that_are_told_other_things_do_nothing(tiny_run, tmp_path):
  ended = jobs.run(
    tmp_path,
    lambda index, output, changed: forked.start(
      "convert",
      [
        f"--input={tiny_run}@4",
        f"--output={tmp_path / 'out'}",
        f"--format={['hf', 'orbax'][index]}",
      ],
      output,
      changed,
    ),
  )
  why = (
    'the processes differ: --format is "hf" in process 0, "orbax" in process 1'
  )
  for code, output in ended:
    assert code == 2
    assert why in output
    assert "Traceback" not in output
  assert not (tmp_path / "out").exists()


def test_a_process_that_nobody_joins_says_so(tiny_run, tmp_path):
  output = tmp_path / "log"
  process = forked.start(
    "convert",
    [
      f"--input={tiny_run}@4",
      f"--output={tmp_path / 'out'}",
      "--format=hf",
      "--coordinator_address=127.0.0.1:1",
      "--num_processes=3",
      "--process_id=2",
    ],
    output,
    {"JAXMERGE_JOIN_SECONDS": "2"},
  )
  process.join(jobs.PATIENCE)
  process.kill()
  job = "3 processes at 127.0.0.1:1 (this is process 2)"
  waiting, error, why, *rest = output.read_text().splitlines()
  assert (waiting, error) == (f"waiting for {job}", "jaxmerge: error:")
  assert why.startswith(f"  {job}: not all came within 2 s (JAXMERGE_JOIN_")
  assert not rest
  assert process.exitcode == 2
