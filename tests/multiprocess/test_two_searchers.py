"""Two search commands at once, on one study: the work is shared."""

import json
import subprocess
import sys

import pytest

from jaxmerge.formats.records.metadata import read_metadata
from tests.helpers import REPORT


@pytest.mark.parametrize("storage", ["", "sqlite"])
def test_two_commands_share_a_study(workdir, tmp_path, storage):
  address = f"sqlite:///{tmp_path}/study.db" if storage else ""
  command = [
    sys.executable,
    "-m",
    "jaxmerge.search",
    "--config=configs/search/tiny.py",
    f"--workdir={workdir}",
    "--config.num_trials=8",
    f"--config.storage={address}",
  ]
  searchers = [
    subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(2)
  ]
  outputs = [searcher.communicate(timeout=300) for searcher in searchers]
  assert [s.returncode for s in searchers] == [0, 0], outputs
  # One wrote the report, and the other says so.
  told = ["has written" in "".join(output) for output in outputs]
  assert sorted(told) == [False, True]
  assert read_metadata(workdir / "search/pair/merged/12").kind == "merged"
  rows = json.loads((workdir / f"{REPORT}/results.json").read_text())["rows"]
  assert rows[-1]["evaluations"] == 8
