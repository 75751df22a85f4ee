"""Killed at any byte, then run again: the same study as never killed."""

import json
import math
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.storages.journal import JournalFileSymlinkLock

from jaxmerge import process_liveness
from jaxmerge.bayesopt.sampler import GPHedgeSampler
from jaxmerge.bayesopt.study import journal
from jaxmerge.bayesopt.study.journal import open_journal
from jaxmerge.bayesopt.study.leases import LEASE_PREFIX
from jaxmerge.bayesopt.study.study import Observation, open_study, run_study
from jaxmerge.errors import InputError

# Three names: all-start studies ask no Gaussian process and are cheap.
_NAMES = ("w_0", "w_1", "w_2")


def _objective(number, params):
  value = sum((w - 0.1 * i) ** 2 for i, w in enumerate(params.values()))
  if number == 1:
    value = float("inf")
  return Observation(value, 0.01 * number, {"n": 3 * number})


def _open(path, num_trials, num_startup):
  return open_study(
    path,
    "search",
    sampler=GPHedgeSampler(
      seed=1, simplex=_NAMES, n_startup_trials=num_startup
    ),
    identity={"config": "a"},
    num_trials=num_trials,
  )


def _search(path, num_trials, num_startup):
  study = _open(path, num_trials, num_startup)
  run_study(study, _objective, num_trials=num_trials)
  return [
    (
      t.number,
      t.params,
      t.value,
      t.state,
      {k: v for k, v in t.user_attrs.items() if k != "seconds"},
      {
        key: value
        for key, value in t.system_attrs.items()
        if not key.startswith(LEASE_PREFIX)
      },
    )
    for t in study.trials
  ]


def _cuts(data: bytes, num_cuts: int, seed: int) -> list[int]:
  rng = np.random.default_rng(seed)
  ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
  at_ends = rng.choice(ends, num_cuts // 4, replace=False)
  anywhere = rng.integers(0, len(data), num_cuts - len(at_ends))
  return [0, len(data) - 1, *map(int, at_ends), *map(int, anywhere)]


@pytest.mark.parametrize(
  ("num_trials", "num_startup", "num_cuts"), [(5, 8, 48), (7, 3, 12)]
)
def test_cut_at_any_byte_equals_undisturbed(
  tmp_path, num_trials, num_startup, num_cuts
):
  undisturbed = _search(tmp_path / "whole", num_trials, num_startup)
  data = (tmp_path / "whole").read_bytes()
  for cut in _cuts(data, num_cuts, seed=num_trials):
    path = tmp_path / f"cut-{cut}"
    path.write_bytes(data[:cut])
    assert _search(path, num_trials, num_startup) == undisturbed, cut
    torn = pathlib.Path(f"{path}.torn")
    end = data[:cut].rfind(b"\n") + 1
    assert torn.exists() == (end < cut)
    if torn.exists():
      assert torn.read_bytes() == data[end:cut] + b"\n"


def test_cut_at_every_byte_of_its_tail_equals_undisturbed(
  tmp_path, monkeypatch
):
  undisturbed = _search(tmp_path / "whole", 3, 3)
  data = (tmp_path / "whole").read_bytes()
  first = data.index(b"\n")
  ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
  rng = np.random.default_rng(0)
  anywhere = map(int, rng.integers(0, len(data), 200))
  # A journal cut inside its first record, the study's, is a new study.
  cuts = {*range(ends[-4], len(data)), *anywhere, 1, first - 1, first}
  monkeypatch.setattr(os, "fsync", lambda descriptor: None)
  path = tmp_path / "cut"
  for cut in cuts:
    path.write_bytes(data[:cut])
    assert _search(path, 3, 3) == undisturbed, cut


def test_a_line_that_another_searcher_died_in_is_mended(tmp_path):
  path = tmp_path / "journal"
  study = _open(path, 2, 3)
  with open(path, "ab") as file:
    file.write(b'{"op_code":8,"worker_')
  run_study(study, _objective, num_trials=2)
  assert pathlib.Path(f"{path}.torn").read_bytes() == (
    b'{"op_code":8,"worker_\n'
  )
  assert _search(path, 2, 3) == _search(tmp_path / "whole", 2, 3)


_OPEN = (
  "from jaxmerge.bayesopt.study.journal import open_journal; import sys;"
  "open_journal(sys.argv[1]); print('opened')"
)
_HOLD = """
import sys, time
from jaxmerge.bayesopt.study import journal
with journal._locked(sys.argv[1]):
  print("held", flush=True)
  time.sleep(600)
"""


def _start(program, path):
  return subprocess.Popen(
    [sys.executable, "-c", program, str(path)],
    stdout=subprocess.PIPE,
    text=True,
  )


def test_a_live_holder_is_waited_for_and_a_killed_one_is_not(tmp_path):
  path = tmp_path / "journal"
  with _start(_HOLD, path) as holder:
    assert holder.stdout.readline() == "held\n"
    with _start(_OPEN, path) as waiting:
      with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=4)
      says = json.loads(pathlib.Path(f"{path}.flock").read_text())
      assert says["pid"] == holder.pid
      assert says["host"] == process_liveness.this_process().host
      holder.kill()
      # Optuna's own lock alone would sit here for thirty seconds.
      assert waiting.communicate(timeout=25)[0] == "opened\n"
  assert [p.name for p in tmp_path.iterdir()] == ["journal"]


def test_the_lock_of_another_optuna_program_is_respected(tmp_path):
  path = tmp_path / "journal"
  open_journal(path)
  theirs = JournalFileSymlinkLock(str(path))
  theirs.acquire()
  with _start(_OPEN, path) as waiting:
    with pytest.raises(subprocess.TimeoutExpired):
      waiting.wait(timeout=4)
    theirs.release()
    assert waiting.communicate(timeout=30)[0] == "opened\n"


def test_other_optuna_programs_wait_for_ours(tmp_path):
  path = tmp_path / "journal"
  order = []
  theirs = JournalFileSymlinkLock(str(path))
  thread = threading.Thread(
    target=lambda: (theirs.acquire(), order.append("theirs"), theirs.release())
  )
  with journal._locked(str(path)):
    thread.start()
    time.sleep(0.2)
    order.append("ours")
  thread.join()
  assert order == ["ours", "theirs"]


# Of an earlier version, and one of another machine.
@pytest.mark.parametrize("target", ["elsewhere:1:2", "jaxmerge@elsewhere"])
def test_an_abandoned_lock_is_dropped_after_a_while(
  tmp_path, monkeypatch, target
):
  path = tmp_path / "journal"
  monkeypatch.setattr(journal, "_GRACE_SECONDS", 0.3)
  os.symlink(target, f"{path}.lock")
  began = time.monotonic()
  open_journal(path)
  assert time.monotonic() - began > 0.3
  assert not os.path.lexists(f"{path}.lock")


def test_what_lies_in_the_way_of_the_lock_is_named(tmp_path):
  path = tmp_path / "journal"
  pathlib.Path(f"{path}.lock").write_text("")
  with pytest.raises(InputError, match="in the way of the journal's lock"):
    open_journal(path)


def test_a_lock_that_another_took_over_is_left_to_it(tmp_path):
  link = tmp_path / "journal.lock"
  with journal._locked(str(tmp_path / "journal")):
    link.unlink()
    link.symlink_to("elsewhere:1:2")
  assert link.is_symlink()
  link.unlink()
  with journal._locked(str(tmp_path / "journal")):
    link.unlink()


def test_damage_in_the_middle_is_an_input_error(tmp_path):
  _search(tmp_path / "whole", 3, 3)
  lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
  damaged = tmp_path / "damaged"
  damaged.write_bytes(b"".join([*lines[:4], lines[4][:9], *lines[5:]]))
  with pytest.raises(InputError, match="damaged at line 5"):
    open_journal(damaged)
  missing = tmp_path / "missing"
  missing.write_bytes(b"".join(lines[1:]))
  before = missing.read_bytes()
  with pytest.raises(InputError, match="damaged at line 1"):
    open_journal(missing)
  assert missing.read_bytes() == before


_NOW = "2026-01-01T00:00:00"
_TOLD = {"op_code": 6, "trial_id": 0, "state": 1, "datetime_complete": _NOW}
_GIVEN = {
  "op_code": 4,
  "study_id": 0,
  "datetime_start": _NOW,
  "distributions": {"x": distribution_to_json(FloatDistribution(0, 1))},
  "user_attrs": {},
  "system_attrs": {},
}


@pytest.mark.parametrize(
  "changes",
  [
    {"op_code": 6, "trial_id": 0},
    {"op_code": 4, "study_id": 0},
    {"op_code": 4, "study_id": 0, "params": 3, "distributions": 3},
    {**_TOLD, "values": []},
    {**_TOLD, "values": [None]},
    {**_TOLD, "values": [math.nan]},
    {**_GIVEN, "params": {"x": None}},
    {**_GIVEN, "params": {"x": math.nan}},
  ],
)
def test_records_that_do_not_fit_together_are_an_input_error(tmp_path, changes):
  record = {"op_code": 4, "worker_id": "x", "study_id": 0, "user_attrs": {}}
  create = {"op_code": 0, "study_name": "search", "directions": [1]}
  records = [
    {**record, **create},
    {**record, "datetime_start": None, "state": 4, "system_attrs": {}},
    {"worker_id": "x", **changes},
  ]
  path = tmp_path / "unfit"
  path.write_text("".join(json.dumps(r) + "\n" for r in records))
  with pytest.raises(InputError, match="do not fit together"):
    open_journal(path)


def test_an_unwritable_place_is_an_input_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot open the journal"):
    open_journal(tmp_path / "file" / "journal")
