"""A search killed at several moments ends as if undisturbed."""

import json
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Callable

from jaxmerge import search
from jaxmerge.formats.records.metadata import read_metadata
from tests import forked
from tests.helpers import REPORT, config_file, config_of, quiet

PATIENCE = 240  # seconds


def run_and_kill(
  argv: list[str], output: pathlib.Path, moment: Callable[[], bool]
) -> bool:
  """Runs until `moment`, then kills; True if it was killed before its end."""
  process = forked.start("search", argv, output)
  while process.is_alive():
    if moment():
      os.kill(process.pid, signal.SIGKILL)
      break
    time.sleep(0.001)
  process.join(PATIENCE)
  process.kill()
  assert process.exitcode in (0, -signal.SIGKILL), output.read_text()
  return process.exitcode != 0


def lines_of(path: pathlib.Path) -> int:
  return path.read_bytes().count(b"\n") if path.exists() else 0


def test_searching(tiny_run, trials_of, tmp_path):
  undisturbed, workdir = tmp_path / "a" / "run", tmp_path / "b" / "run"
  for copy in (undisturbed, workdir):
    shutil.copytree(tiny_run, copy)
  merged = search.search(config_of("search"), undisturbed, progress=quiet)
  argv = [f"--config={config_file('search')}", f"--workdir={workdir}"]
  output = tmp_path / "log"
  folder = workdir / "search/pair"
  journal = folder / "study.journal"
  moments: list[Callable[[], bool]] = [
    lambda: lines_of(journal) >= 3,
    lambda: lines_of(journal) >= 12,
    lambda: lines_of(journal) >= 30,
    lambda: any(folder.glob("merged/.*")),
    lambda: any(workdir.glob(".report*")),
  ]
  kills = sum(run_and_kill(argv, output, moment) for moment in moments)
  assert kills >= 3
  assert not run_and_kill(argv, output, lambda: False)
  assert trials_of(workdir) == trials_of(undisturbed)
  assert len(trials_of(workdir)) == 5
  names = [w / f"{REPORT}/results.json" for w in (undisturbed, workdir)]
  first, again = (json.loads(name.read_text()) for name in names)
  assert first == again
  again_merged = workdir / merged.relative_to(undisturbed)
  leaves = [read_metadata(p).leaves for p in (merged, again_merged)]
  assert leaves[0] == leaves[1]
