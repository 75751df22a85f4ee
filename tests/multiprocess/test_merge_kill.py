"""Merges of some 100 MB in processes of their own: kill -9, and memory."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.errors import InputError
from tests.helpers import ROOT, contents
from tests.merging import fixtures

MB = 2**20
CONFIG = f"--config={ROOT / 'configs/merge/uniform.py'}"
# torch and transformers are not needed.
ALONE = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from jaxmerge import merge
from jaxmerge.cli import runner
code = runner.run("merge", lambda: merge.main(sys.argv[1:]))
status = open("/proc/self/status").read() if sys.platform == "linux" else ""
print(status.partition("VmHWM:")[2].split("kB")[0])
sys.exit(code)
"""


def tensors(seed, megabytes):
  rng = np.random.default_rng(seed)
  size = megabytes * MB // 4 // 4
  return {
    f"{name}/w": rng.standard_normal((size // 512, 512), np.float32)
    for name in "abcd"
  }


def argv_of(paths, output, *more):
  inputs = ",".join(map(str, paths))
  return [CONFIG, f"--inputs={inputs}", f"--output={output}", *more]


def start(argv):
  return subprocess.Popen(
    [sys.executable, "-c", ALONE, *argv],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env=os.environ,
  )


def finish(process):
  """Its highest resident memory in MiB."""
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err.decode()
  return int(out.split()[-1]) / 1024 if sys.platform == "linux" else 0


def kill_at(argv, moment):
  process = start(argv)
  while process.poll() is None and not moment():
    time.sleep(0.0005)
  process.send_signal(signal.SIGKILL)
  process.communicate(timeout=120)
  assert process.returncode == -signal.SIGKILL, "it had ended before"


def unfinished(folder):
  return list(folder.glob(".*"))


def size_of(paths):
  files = (f for path in paths for f in path.rglob("*"))
  total = 0
  for file in files:
    try:
      total += file.stat().st_size
    except FileNotFoundError:
      continue
  return total


def accepted(path):
  try:
    open_inputs([str(path)])
  except InputError:
    return False
  return True


@pytest.mark.parametrize("form", ["step", "hf"])
def test_a_killed_merge_leaves_nothing_that_passes_for_one(tmp_path, form):
  trees = [tensors(seed, 64) for seed in (1, 2)]
  paths = [tmp_path / "in" / f"{i}" for i in (1, 2)]
  for step, (path, tree) in enumerate(zip(paths, trees)):
    if form == "step":
      nested = {name[0]: {"w": array} for name, array in tree.items()}
      fixtures.step_directory(path, nested, step=step)
    else:
      fixtures.hugging_face(path, tree, step=step)
  folder = tmp_path / "out"
  folder.mkdir()
  output = folder / "merged"
  argv = argv_of(paths, output)
  kill_at(argv, lambda: list(folder.glob(".merged.*")))
  assert not output.exists()
  kill_at(argv, lambda: size_of(unfinished(folder)) > 24 * MB)
  assert size_of(unfinished(folder)) > 24 * MB
  assert not accepted(output)
  assert not output.exists()
  # The same command: as if nothing had been.
  finish(start(argv))
  assert [p.name for p in folder.iterdir()] == ["merged"]
  mean = {n: (trees[0][n] + x) / 2 for n, x in trees[1].items()}
  if form == "step":
    found = {f"{n}/w": x["w"] for n, x in restore_params(output).items()}
  else:
    found = fixtures.loaded(output)
  for name, array in mean.items():
    np.testing.assert_allclose(found[name], array, atol=1e-6)
  # Neither does a killed replacement harm what was there.
  before = contents(output)
  argv += ["--overwrite", "--config.method=wma"]
  kill_at(argv, lambda: size_of(unfinished(folder)) > 24 * MB)
  assert contents(output) == before
  assert accepted(output)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak")
def test_many_inputs_take_no_more_memory_than_few(tmp_path):
  first = fixtures.hugging_face(tmp_path / "0", tensors(0, 100), step=0)
  paths = [first]
  for i in range(1, 12):
    paths.append(
      fixtures.hugging_face(tmp_path / str(i), {"x": np.zeros(1)}, step=i)
    )
    (paths[-1] / "model.safetensors").unlink()
    os.link(first / "model.safetensors", paths[-1] / "model.safetensors")
  few = finish(start(argv_of(paths[:2], tmp_path / "few")))
  many = finish(start(argv_of(paths, tmp_path / "many")))
  assert many < 1.3 * few
  # A tree of 100 MB is nowhere whole: a process that does nothing takes more
  # than a third of this.
  assert many < 600
