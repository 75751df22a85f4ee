"""Newton's searches that are stopped, killed, shared or damaged."""

import itertools
import json
import os
import signal
import time

import numpy as np
import pytest
from etils import epath
from optuna.storages import JournalStorage

from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.errors import InputError
from jaxmerge.evaluation import measurements
from jaxmerge.evaluation.measurements import MEASURED
from jaxmerge.evaluation.weight_search import (
  choose,
  open_weight_study,
)
from tests import forked
from tests.evaluation.bowls import (
  INSIDE,
  TOKENS,
  Bowl,
  ended,
  facts,
  run,
  stop_after,
  weight_search,
)


@pytest.mark.parametrize("num_trials", [2, 3])
def test_a_small_budget_takes_the_best_of_what_was_tried(tmp_path, num_trials):
  bowl = Bowl(INSIDE)
  search = weight_search((1, 3), num_trials=num_trials)
  study, ending = run(tmp_path / "j", bowl, search)
  assert len(ended(study)) == num_trials
  assert ending == "done"
  assert choose(study, search).number == num_trials - 1
  # What a larger one would have asked.
  more = search._replace(num_trials=6)
  study, _ = run(tmp_path / "j", bowl, more)
  alone, _ = run(tmp_path / "alone", Bowl(INSIDE), more)
  assert facts(study) == facts(alone)


def test_a_limit_of_tokens_holds_and_goes_on(tmp_path):
  bowl = Bowl(INSIDE, noise=0.4)
  limits = Budget(tokens=13 * TOKENS)  # the next may cost what trial 1 did
  study, ending = run(tmp_path / "j", bowl, limits=limits)
  assert (len(ended(study)), ending) == (2, "tokens")
  study, ending = run(tmp_path / "j", bowl)
  alone, _ = run(tmp_path / "alone", Bowl(INSIDE, noise=0.4))
  assert facts(study) == facts(alone)
  assert len(bowl.measured_at) == 1


def test_a_large_measurement_lies_in_a_file(tmp_path, monkeypatch):
  alone, _ = run(tmp_path / "alone", Bowl(INSIDE, noise=0.4))
  monkeypatch.setattr(measurements, "_MOST_NUMBERS", 8)
  folder = epath.Path(tmp_path / "measurements")
  search = weight_search((1, 3), folder=folder)
  bowl = Bowl(INSIDE, noise=0.4)
  study, _ = run(tmp_path / "j", bowl, search, on_trial=stop_after(1))
  [path] = folder.iterdir()
  said = ended(study)[1].user_attrs[MEASURED]
  assert said["file"] == path.name
  assert path.name.startswith("1-")
  study, ending = run(tmp_path / "j", bowl, search)
  assert ending == "converged"
  assert len(bowl.measured_at) == 1
  assert [t.params for t in ended(study)] == [t.params for t in ended(alone)]


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_measurement_that_is_lost_is_refused(tmp_path, monkeypatch, damage):
  monkeypatch.setattr(measurements, "_MOST_NUMBERS", 8)
  folder = epath.Path(tmp_path / "measurements")
  search = weight_search((1, 3), folder=folder)
  study, _ = run(tmp_path / "j", Bowl(INSIDE), search, on_trial=stop_after(1))
  [path] = folder.iterdir()
  content = bytearray(path.read_bytes())
  path.unlink()
  if damage == "damaged":
    content[-9] ^= 1
    path.write_bytes(bytes(content))
  with pytest.raises(InputError, match=rf"trial 1 .* is {damage}; restore it"):
    run(tmp_path / "j", Bowl(INSIDE), search)
  content[-9] ^= damage == "damaged"
  path.write_bytes(bytes(content))
  _, ending = run(tmp_path / "j", Bowl(INSIDE), search)
  assert ending == "converged"


class LoggedBowl(Bowl):
  """Writes a line for each score and measurement; takes a while for them."""

  def __init__(self, log, seconds=0.0):
    super().__init__([[0.3, 0.4, 0.3]], told=1.5, noise=1e-4)
    self.log, self.seconds = log, seconds

  def _write(self, word, weights_GxK):
    with open(self.log, "a") as file:
      file.write(json.dumps([word, np.array(weights_GxK).tolist()]) + "\n")
    time.sleep(self.seconds)

  def score(self, weights_GxK, best=None, *, in_parts=False):
    self._write("score", weights_GxK)
    return super().score(weights_GxK, best)

  def measured(self, weights_GxK, *, curvature, score):
    self._write("measured", weights_GxK)
    return super().measured(weights_GxK, curvature=curvature, score=score)


def logged_search(path, log, seconds, killed_at, most_numbers, folder):
  """A searcher; killed -9 at its so-manieth write to the study."""
  measurements._MOST_NUMBERS = most_numbers
  left = itertools.count(1)

  def killing(plain):
    def write(*arguments, **named):
      if next(left) == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
      return plain(*arguments, **named)

    return write

  search = weight_search((1, 3), folder=epath.Path(folder))
  for name in (
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_trial_state_values",
  ):
    plain = getattr(JournalStorage, name)
    setattr(JournalStorage, name, killing(plain))
  run(path, LoggedBowl(log, seconds), search)


def _start(tmp_path, killed_at=0, seconds=0.0, most_numbers=100):
  work = ("j", "log", seconds, killed_at, most_numbers, "measurements")
  paths = [str(tmp_path / x) if isinstance(x, str) else x for x in work]
  said = tmp_path / f"said-{time.monotonic_ns()}"
  return forked.start_work(logged_search, paths, said), said


def _lines(tmp_path, word):
  text = (tmp_path / "log").read_text()
  found = [json.loads(line) for line in text.splitlines()]
  return [weights for kind, weights in found if kind == word]


@pytest.mark.parametrize("most_numbers", [100, 8])
def test_killed_at_every_write_equals_undisturbed(tmp_path, most_numbers):
  (tmp_path / "log").touch()
  alone, _ = run(tmp_path / "alone", LoggedBowl(tmp_path / "alone.log"))
  search = weight_search((1, 3), folder=epath.Path(tmp_path / "measurements"))

  def stored():
    study = open_weight_study(tmp_path / "j", "a", search, identity={})
    return [t.user_attrs.get(MEASURED) for t in study.get_trials()]

  exit_code, killed_at = None, 0
  while exit_code != 0:
    killed_at += 1
    before = stored() if killed_at > 1 else []
    asked = len(_lines(tmp_path, "measured"))
    process, said = _start(tmp_path, killed_at, most_numbers=most_numbers)
    process.join(60)
    exit_code = process.exitcode
    assert exit_code in (0, -signal.SIGKILL), said.read_text()
    # What a dead searcher has stored is not measured again.
    now = [m for m in stored() if m]
    for one in filter(None, before):
      assert one in now
    known = [m for m in before if m]
    assert len(_lines(tmp_path, "measured")) - asked <= 2 - len(known)
  assert killed_at > 10
  study, ending = run(tmp_path / "j", Bowl(INSIDE), search)
  assert ending == "converged"
  if most_numbers > 8:
    assert facts(study) == facts(alone)
  else:
    assert len(list((tmp_path / "measurements").iterdir())) == 2
  assert [t.params for t in ended(study)] == [t.params for t in ended(alone)]
  assert [t.user_attrs["tokens"] for t in ended(study)] == [
    t.user_attrs["tokens"] for t in ended(alone)
  ]


def test_two_searchers_wait_for_each_other(tmp_path):
  alone, _ = run(tmp_path / "alone", LoggedBowl(tmp_path / "alone.log"))
  started = [_start(tmp_path, seconds=0.2) for _ in range(2)]
  for process, said in started:
    process.join(60)
    assert process.exitcode == 0, said.read_text()
  search = weight_search((1, 3))
  study = open_weight_study(tmp_path / "j", "a", search, identity={})
  assert facts(study) == facts(alone)
  assert len(_lines(tmp_path, "measured")) == 2
  assert len(_lines(tmp_path, "score")) == 4
