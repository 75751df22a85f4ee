"""Which processes live: not zombies, nor later ones of the same number."""

import os
import subprocess

from jaxmerge import process_liveness
from jaxmerge.process_liveness import is_alive, is_here, this_process


def test_this_process_is_alive_and_known_by_its_start():
  me = this_process()
  assert me.pid == os.getpid()
  assert is_alive(me)
  # The clock may be set while a process runs; a later one starts later.
  assert is_alive(me._replace(start=me.start + 1.5))
  assert is_alive(me._replace(start=me.start - 1.5))
  assert not is_alive(me._replace(start=me.start + 3))
  assert not is_alive(me._replace(start=me.start - 3))


def test_a_zombie_and_what_is_gone_are_dead():
  with subprocess.Popen(["sleep", "60"]) as process:
    start = process_liveness.psutil.Process(process.pid).create_time()
    owner = this_process()._replace(pid=process.pid, start=start)
    assert is_alive(owner)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process_liveness.psutil.pid_exists(process.pid)
    assert not is_alive(owner)
  assert not is_alive(owner)


def test_another_hosts_process_cannot_be_looked_up():
  assert is_here(this_process())
  elsewhere = this_process()._replace(host="elsewhere")
  assert not is_here(elsewhere)
  assert not is_alive(elsewhere)


def test_one_that_an_earlier_version_described_is_not_alive():
  assert not is_alive(this_process()._replace(start="12345"))
