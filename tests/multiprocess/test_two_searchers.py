"""Two search commands at once, on one study: the work is shared."""

import json

import pytest

from jaxmerge.formats.records.metadata import read_metadata
from tests import forked
from tests.helpers import REPORT, config_file

PATIENCE = 300  # seconds


@pytest.mark.parametrize("storage", ["", "sqlite"])
def test_two_commands_share_a_study(workdir, tmp_path, storage):
  address = f"sqlite:///{tmp_path}/study.db" if storage else ""
  argv = [
    f"--config={config_file('search')}",
    f"--workdir={workdir}",
    "--config.num_trials=8",
    f"--config.storage={address}",
  ]
  logs = [tmp_path / f"{number}.log" for number in range(2)]
  searchers = [forked.start("search", argv, log) for log in logs]
  for searcher in searchers:
    searcher.join(PATIENCE)
    searcher.kill()
    searcher.join()
  outputs = [log.read_text() for log in logs]
  assert [s.exitcode for s in searchers] == [0, 0], outputs
  # One wrote the report, and the other says so.
  told = ["has written" in output for output in outputs]
  assert sorted(told) == [False, True]
  assert read_metadata(workdir / "search/pair/merged/12").kind == "merged"
  rows = json.loads((workdir / f"{REPORT}/results.json").read_text())["rows"]
  assert rows[-1]["evaluations"] == 8
