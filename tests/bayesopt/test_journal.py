"""Killed at any byte, then run again: the same study as never killed."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxmerge import owner
from jaxmerge.bayesopt import journal
from jaxmerge.bayesopt.journal import OwnedLock, open_journal
from jaxmerge.bayesopt.leases import LEASE_PREFIX
from jaxmerge.bayesopt.sampler import GPHedgeSampler
from jaxmerge.bayesopt.study import Observation, open_study, run_study
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
    fingerprint={"config": "a"},
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
  with open(path, "ab") as journal:
    journal.write(b'{"op_code":8,"worker_')
  run_study(study, _objective, num_trials=2)
  assert pathlib.Path(f"{path}.torn").read_bytes() == (
    b'{"op_code":8,"worker_\n'
  )
  assert _search(path, 2, 3) == _search(tmp_path / "whole", 2, 3)


_OPEN = (
  "from jaxmerge.bayesopt.journal import open_journal; import sys;"
  "open_journal(sys.argv[1]); print('opened')"
)


def test_a_dead_owners_lock_is_dropped_at_once(tmp_path):
  path = tmp_path / "journal"
  with subprocess.Popen(["true"]) as finished:
    finished.wait()
  host = owner.this_process().host
  os.symlink(f"{host}:{finished.pid}:12345", f"{path}.lock")
  # Optuna's own lock would sit here for thirty seconds.
  subprocess.run(
    [sys.executable, "-c", _OPEN, str(path)], check=True, timeout=25
  )
  assert not os.path.lexists(f"{path}.lock")


def test_a_live_owners_lock_is_respected(tmp_path):
  path = tmp_path / "journal"
  open_journal(path)
  os.symlink(":".join(map(str, owner.this_process())), f"{path}.lock")
  with subprocess.Popen(
    [sys.executable, "-c", _OPEN, str(path)],
    stdout=subprocess.PIPE,
    text=True,
  ) as waiting:
    with pytest.raises(subprocess.TimeoutExpired):
      waiting.wait(timeout=4)
    os.unlink(f"{path}.lock")
    assert waiting.communicate(timeout=30)[0] == "opened\n"


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
  unfit = tmp_path / "unfit"
  unfit.write_bytes(lines[0] + b'{"op_code":4,"worker_id":"x","study_id":0}\n')
  with pytest.raises(InputError, match="do not fit together"):
    open_journal(unfit)


def test_an_unwritable_place_is_an_input_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot open the journal"):
    open_journal(tmp_path / "file" / "journal")


def test_a_lock_that_another_took_over_is_left_to_it(tmp_path):
  lock = OwnedLock(str(tmp_path / "writer"))
  lock.acquire()
  link = tmp_path / "writer.lock"
  link.unlink()
  link.symlink_to("elsewhere:1:2")
  lock.release()
  assert link.is_symlink()
  link.unlink()
  lock.release()
  lock.renew()


def test_a_block_that_takes_long_renews_its_lock(tmp_path, monkeypatch):
  monkeypatch.setattr(journal, "_RENEWAL_SECONDS", 0.01)
  link = tmp_path / "writer.lock"
  with journal.one_at_a_time(tmp_path / "writer"):
    first = link.lstat().st_mtime_ns
    for _ in range(500):
      time.sleep(0.01)
      if link.lstat().st_mtime_ns > first:
        break
    assert link.lstat().st_mtime_ns > first
  assert not link.is_symlink()
