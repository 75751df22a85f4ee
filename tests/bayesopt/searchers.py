"""Searchers forked from one warm process, for tests that kill them.

  python searchers.py MODE '{"storage": ..., ...}'

prints JSON. A fork costs milliseconds; it happens before any thread, database
or tensorstore, and jax is never imported.
"""

import json
import os
import pathlib
import random
import signal
import struct
import sys
import time
import traceback

import numpy as np
import optuna.storages._rdb.storage  # noqa: F401  (warm for SQLite)
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from jaxmerge.bayesopt.study import leases
from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.bayesopt.study.study import Observation, open_study, run_study


class SeededSampler(BaseSampler):
  """A point of a trial's number alone, or of all that is finished, too."""

  def __init__(self, uses_history):
    self._uses_history = uses_history

  def infer_relative_search_space(self, study, trial):
    return {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}

  def sample_relative(self, study, trial, search_space):
    x, y = np.random.default_rng([7, trial.number]).random(2)
    if self._uses_history:
      done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
      x = (x + sum(t.value for t in done)) % 1.0
    return {"x": float(x), "y": float(y)}

  def sample_independent(self, study, trial, name, distribution):
    raise AssertionError("everything is relative")


def opened(storage, num_trials, uses_history=False, **_):
  return open_study(
    storage,
    "search",
    sampler=SeededSampler(uses_history),
    identity={"config": "a"},
    num_trials=num_trials,
  )


def search(log, seconds=0.0, tokens=None, **options):
  """One searcher; every evaluation it starts is a line "number pid"."""
  study = opened(**options)

  def objective(number, params):
    with open(log, "a") as file:
      file.write(f"{number} {os.getpid()}\n")
    time.sleep(seconds)
    return Observation((params["x"] - 0.4) ** 2 + params["y"], 0.1, tokens=10)

  num_trials = options["num_trials"]
  limits = Budget(tokens=tokens)
  return run_study(study, objective, num_trials=num_trials, limits=limits)


def trials(num_trials, **options):
  study = opened(num_trials=num_trials, **options)
  return [
    [
      t.number,
      t.state.name,
      t.params,
      t.value,
      {k: v for k, v in t.user_attrs.items() if k != "seconds"},
    ]
    for t in study.get_trials(deepcopy=False)[:num_trials]
  ]


def forked(function, *args, **kwargs):
  pid = os.fork()
  if pid:
    return pid
  try:
    function(*args, **kwargs)
    os._exit(0)
  except BaseException:  # noqa: BLE001  (a fork must not return)
    traceback.print_exc()
  os._exit(1)


def wait(pid):
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def evaluations(log):
  path = pathlib.Path(log)
  lines = path.read_text().splitlines() if path.exists() else []
  return [tuple(map(int, line.split())) for line in lines]


def share(num_searchers, kill_at=None, **options):
  """Several searchers on one study; one dies in its `kill_at`-th evaluation."""
  pids = [forked(search, **options) for _ in range(num_searchers)]
  while kill_at is not None:
    mine = [n for n, pid in evaluations(options["log"]) if pid == pids[0]]
    if len(mine) == kill_at:
      os.kill(pids[0], signal.SIGKILL)
      break
    time.sleep(0.005)
  codes = [wait(pid) for pid in pids]
  log = [(n, pids.index(pid)) for n, pid in evaluations(options["log"])]
  return {"codes": codes, "log": log}


def kill_loop(num_kills, longest_seconds, folder, **options):
  """A searcher killed at random, and again, until each study is done."""
  rng = random.Random(3)
  kills, storages = 0, []
  while kills < num_kills:
    storage = f"{folder}/{len(storages)}.journal"
    options |= {"storage": storage, "log": storage + ".log"}
    while True:
      pid = forked(search, **options)
      if kills < num_kills:
        time.sleep(rng.uniform(0.0, longest_seconds))
        os.kill(pid, signal.SIGKILL)
      code = wait(pid)
      if code == 0:
        break
      assert code == -signal.SIGKILL
      kills += 1
    storages.append(storage)
  del options["storage"]
  studies = [trials(storage=storage, **options) for storage in storages]
  return {"kills": kills, "studies": studies}


def race(num_searchers, log, is_waiting, **options):
  """Searchers that want the same trials at once; which of them got which."""
  pathlib.Path(log).touch()
  wait(forked(opened if is_waiting else abandon, **options))
  ready, go = os.pipe(), os.pipe()
  pids = [
    forked(grab, log, ready[1], go[0], **options) for _ in range(num_searchers)
  ]
  for _ in pids:
    os.read(ready[0], 1)
  os.write(go[1], b"".join(struct.pack("d", time.time()) for _ in pids))
  while len(results := pathlib.Path(log).read_text().splitlines()) < len(pids):
    time.sleep(0.01)
  # Alive until all have looked: a dead one's leases are free.
  for pid in pids:
    os.kill(pid, signal.SIGKILL)
    wait(pid)
  return [json.loads(line) for line in results]


def abandon(**options):
  """Dies with every trial running."""
  study = opened(**options)
  for trial in study.get_trials():
    assert leases.start(leases.take(study, trial))


def grab(log, ready, go, **options):
  study = opened(**options)
  os.write(ready, b"r")
  (began,) = struct.unpack("d", os.read(go, 8))
  taken = []
  for trial in study.get_trials():
    # All searchers want the same trial at the same moment.
    time.sleep(max(0.0, began + 0.05 * (trial.number + 1) - time.time()))
    if got(study, trial):
      taken.append(trial.number)
  while not all(map(leases.is_held_by_another, free(study, taken))):
    taken += [t.number for t in free(study, taken) if got(study, t)]
    time.sleep(random.uniform(0, 0.02))
  with open(log, "a") as file:
    file.write(json.dumps(taken) + "\n")
  time.sleep(600)


def got(study, trial):
  if trial.state == TrialState.WAITING:
    return leases.start(leases.take(study, trial))
  return leases.take_over(study, [trial]) is not None


def free(study, taken):
  return [t for t in study.get_trials() if t.number not in taken]


if __name__ == "__main__":
  mode, arguments = sys.argv[1:]
  print(json.dumps(globals()[mode](**json.loads(arguments))))
