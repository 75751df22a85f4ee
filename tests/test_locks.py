"""One process at a time, told who holds it, free as soon as it is dead."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from jaxmerge import locks
from jaxmerge.errors import InputError

_HOLD = """
import sys, time
from jaxmerge import locks
with locks.exclusive(sys.argv[1], "the run"):
  print("held", flush=True)
  time.sleep(600)
"""


def hold(path):
  process = subprocess.Popen(
    [sys.executable, "-c", _HOLD, str(path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  return process


def take(path):
  with locks.exclusive(path, "the run"):
    pass


def test_the_second_is_told_who_holds_it_and_a_dead_one_holds_nothing(tmp_path):
  path = tmp_path / "run"
  with hold(path) as process:
    year = time.strftime("%Y")
    says = f"the run is in use by process {process.pid} on .*since {year}-"
    with pytest.raises(InputError, match=says) as told:
      take(path)
    assert socket.gethostname() in str(told.value)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # What the dead process left is there, and stops nobody.
    assert locks.lock_file(path).exists()
    take(path)
  assert not list(tmp_path.iterdir())


def test_a_patient_block_comes_after_the_one_before_it(tmp_path):
  path, order = tmp_path / "run", []

  def wait():
    with locks.exclusive(path, "the run", wait=True):
      order.append("second")

  thread = threading.Thread(target=wait)
  with locks.exclusive(path, "the run"):
    thread.start()
    time.sleep(0.2)
    order.append("first")
  thread.join()
  assert order == ["first", "second"]
  # One that is killed is waited for no longer.
  with hold(path) as process:
    process.send_signal(signal.SIGKILL)
    wait()
  assert not list(tmp_path.iterdir())


def test_nothing_remains_and_the_path_need_not_exist(tmp_path):
  with locks.exclusive(tmp_path / "a/b", "the output"):
    assert [p.name for p in (tmp_path / "a").iterdir()] == [".b.jaxmerge-lock"]
  assert not list((tmp_path / "a").iterdir())


def test_a_block_that_raises_frees_it(tmp_path):
  with pytest.raises(KeyError), locks.exclusive(tmp_path / "run", "the run"):
    raise KeyError
  take(tmp_path / "run")


def test_two_names_of_one_path_have_one_lock(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "link").symlink_to("run")
  with (
    locks.exclusive(tmp_path / "run", "the run"),
    pytest.raises(InputError, match="in use by process"),
  ):
    take(tmp_path / "x/../link/.")


def test_one_process_does_not_get_it_twice(tmp_path):
  path = tmp_path / "run"
  refused = []

  def other_thread():
    try:
      take(path)
    except InputError as error:
      refused.append(str(error))

  with locks.exclusive(path, "the run"):
    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    with pytest.raises(InputError, match=f"in use by process {os.getpid()} "):
      take(path)
    # Refused blocks have not freed it.
    with pytest.raises(InputError, match="in use"):
      take(path)
  assert "in use" in refused[0]
  take(path)


def test_a_forked_child_does_not_keep_it(tmp_path):
  path = tmp_path / "run"
  script = f"""
import os, time
from jaxmerge import locks
with locks.exclusive({str(path)!r}, "the run"):
  if os.fork() == 0:
    print("child", flush=True)
    time.sleep(20)
    os._exit(0)
  os.kill(os.getpid(), 9)
"""
  with subprocess.Popen(
    [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
  ) as process:
    assert process.stdout.readline() == "child\n"
    assert process.wait() == -signal.SIGKILL
    take(path)


def test_many_at_once_are_one_after_the_other(tmp_path):
  """A lock file that is removed does not let two in."""
  path, inside, most = tmp_path / "run", [], []

  def work():
    for _ in range(300):
      try:
        with locks.exclusive(path, "the run"):
          inside.append(1)
          most.append(len(inside))
          inside.pop()
      except InputError:
        pass

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert set(most) == {1}
  assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_locked_says_so(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot write to .*file"):
    take(tmp_path / "file/run")
  locks.lock_file(tmp_path / "run").mkdir()
  with pytest.raises(InputError, match="the run cannot be locked with .*run"):
    take(tmp_path / "run")
  # A link would have another file emptied.
  (tmp_path / "precious").write_text("kept")
  os.symlink("precious", locks.lock_file(tmp_path / "other"))
  with pytest.raises(InputError, match="cannot be locked"):
    take(tmp_path / "other")
  assert (tmp_path / "precious").read_text() == "kept"


def test_a_lock_file_of_another_is_not_removed(tmp_path):
  path = tmp_path / "run"
  with locks.exclusive(path, "the run"):
    locks.lock_file(path).unlink()
    locks.lock_file(path).write_text("of a later process")
  assert locks.lock_file(path).read_text() == "of a later process"


def test_an_object_store_has_no_lock():
  with locks.exclusive("gs://bucket/run", "the run"):
    take("gs://bucket/run")
