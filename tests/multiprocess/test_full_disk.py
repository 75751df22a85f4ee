"""A disk that is full or read-only: one message, code 2, and nothing lost."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.helpers import REPORT, ROOT

# A small disk of its own, in a name space that any user may open.
DISK = "mount -t tmpfs -o size={size}k tmpfs {disk}"
GROW = "mount -o remount,size=64m {disk}"


def script(*lines: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    + ["\n".join(lines)],
    capture_output=True,
    text=True,
    env=os.environ,
  )


@pytest.fixture
def disk(tmp_path):
  path = tmp_path / "disk"
  path.mkdir()
  if (
    shutil.which("unshare") is None
    or script(DISK.format(size=64, disk=path)).returncode
  ):
    pytest.skip("this machine gives no user its own mounts")
  return path


def assert_one_message(stderr: str, part: str) -> None:
  lines = stderr.strip().splitlines()
  assert len(lines) == 2, stderr
  assert part in lines[1].lower()


@pytest.mark.parametrize(
  ("size", "said"),
  [(1000, "needs room for"), (1500, "no space left on device")],
)
def test_pretraining(tiny_run, disk, size, said):
  command = (
    f"{sys.executable} -m jaxmerge.pretrain --workdir={disk}/run "
    f"--config={ROOT / 'configs/pretrain/tiny.py'}"
  )
  done = script(
    DISK.format(size=size, disk=disk),
    f"{command} > /dev/null; test $? = 2 || exit 1",
    GROW.format(disk=disk),
    f"{command} > /dev/null || exit 3",
    f"cat {disk}/run/metrics.jsonl",
  )
  assert done.returncode == 0, done.stderr
  assert_one_message(done.stderr, said)
  assert done.stdout == (tiny_run / "metrics.jsonl").read_text()


@pytest.mark.parametrize("room", [8, 50, 250])
def test_search(tiny_run, disk, room):
  command = (
    f"{sys.executable} -m jaxmerge.search --workdir={disk}/run "
    f"--config={ROOT / 'configs/search/tiny.py'}"
  )
  done = script(
    DISK.format(size=64 * 1024, disk=disk),
    f"cp -r {tiny_run} {disk}/run",
    f"used=$(df --output=used -k {disk} | tail -1)",
    f"mount -o remount,size=$((used + {room}))k {disk}",
    f"{command} > /dev/null; test $? = 2 || exit 1",
    f"find {disk}/run -name '*tmp*'; ls {disk}/run/{REPORT} 2> /dev/null",
    GROW.format(disk=disk),
    f"{command} > /dev/null || exit 3",
    f"cat {disk}/run/{REPORT}/results.json",
  )
  assert done.returncode == 0, done.stderr
  assert_one_message(done.stderr, "no space left on device")
  rows = json.loads(done.stdout)["rows"]  # and nothing half-written before it
  assert rows[-1]["evaluations"] == 5


@pytest.mark.parametrize("flag", ["", "--dry_run"])
def test_a_read_only_disk(tiny_run, disk, flag):
  python = f"{sys.executable} -m jaxmerge"
  configs = ROOT / "configs"
  inputs = f"--inputs={tiny_run}@4,{tiny_run}@8"
  commands = (
    f"pretrain --config={configs}/pretrain/tiny.py --workdir={disk}/run",
    f"search --config={configs}/search/tiny.py --workdir={disk}/run {inputs}",
    f"merge --config={configs}/merge/uniform.py --output={disk}/out {inputs}",
  )
  for command in commands:
    done = script(
      f"mount -t tmpfs -o ro tmpfs {disk}", f"{python}.{command} {flag}"
    )
    assert done.returncode == 2
    assert_one_message(done.stderr, "read-only")
