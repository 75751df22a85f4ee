"""SIGINT and SIGTERM at any moment: one line, which is true, and a code."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import pytest

from jaxmerge import convert, errors, evaluate, merge, search
from jaxmerge.cli import runner
from jaxmerge.evaluation import task_scores
from jaxmerge.evaluation.merged_loss import MergedLoss
from tests.helpers import ROOT, free_port

BOTH = [(signal.SIGINT, 130), (signal.SIGTERM, 4)]
VERBS = ["pretrain", "merge", "search", "evaluate", "convert", "quickstart"]
# The program says that it begins its imports, and then takes long over jax.
SLOW_IMPORTS = """
import runpy, sys, time
class Slow:
  def find_spec(self, name, path, target=None):
    if name == "jax":
      print("importing", flush=True)
      time.sleep(60)
sys.meta_path.insert(0, Slow())
sys.argv = ["jaxmerge.{verb}"]
runpy.run_module("jaxmerge.{verb}", run_name="__main__")
"""
# A program that does what {body} says instead of a verb's work.
BODY = """
import sys, time, types
from jaxmerge.cli import launch
def wait():
  print("began", flush=True)
  time.sleep(60)
def main(argv):
{body}
sys.modules["jaxmerge.verb"] = types.SimpleNamespace(main=main)
sys.exit(launch.run("verb"))
"""


def start(*argv: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, *argv],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    # A background job of a shell ignores SIGINT, and so would its children.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
  )


def body(text: str) -> subprocess.Popen:
  lines = "".join(f"  {line}\n" for line in text.strip().splitlines())
  process = start("-c", BODY.format(body=lines))
  assert process.stdout.readline() == "began\n"
  return process


def told(process: subprocess.Popen) -> tuple[int, list[str]]:
  stdout, stderr = process.communicate(timeout=120)
  assert "Traceback" not in stdout
  return process.returncode, stderr.splitlines()


@pytest.mark.parametrize(("number", "code"), BOTH)
@pytest.mark.parametrize("verb", VERBS)
def test_during_the_imports(verb, number, code):
  process = start("-c", SLOW_IMPORTS.format(verb=verb))
  assert process.stdout.readline() == "importing\n"
  process.send_signal(number)
  returned, lines = told(process)
  assert returned == code
  assert len(lines) == 1
  assert lines[0].startswith(f"jaxmerge.{verb}: interrupted; ")


@pytest.mark.parametrize(("number", "code"), BOTH)
def test_the_first_signal_unwinds(number, code):
  process = body("""
try:
  wait()
except KeyboardInterrupt as error:
  error.add_note("step 300 is saved")
  raise
finally:
  print("cleaned", flush=True)
""")
  process.send_signal(number)
  returned, lines = told(process)
  assert returned == code
  assert lines == ["jaxmerge.verb: interrupted; step 300 is saved"]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_it_at_once(second):
  process = body("""
try:
  wait()
finally:
  print("cleaning", flush=True)
  time.sleep(60)
  print("cleaned", flush=True)
""")
  process.send_signal(signal.SIGINT)
  assert process.stdout.readline() == "cleaning\n"
  time.sleep(0.6)  # sooner it would be taken for the first one's echo
  process.send_signal(second)
  stdout, stderr = process.communicate(timeout=50)
  assert process.returncode == 130
  assert stdout == ""
  assert len(stderr.splitlines()) == 1


def test_a_run_at_its_steps_only_notes_the_signal():
  process = body("""
from jaxmerge import interrupts
with interrupts.held() as held:
  held.begun = True
  print("began", flush=True)
  while not held.first:
    time.sleep(0.01)
  print("noted", held.first, flush=True)
  time.sleep(60)
""")
  process.send_signal(signal.SIGTERM)
  assert process.stdout.readline() == f"noted {int(signal.SIGTERM)}\n"
  time.sleep(0.6)
  process.send_signal(signal.SIGTERM)
  returned, lines = told(process)
  assert returned == 4
  assert len(lines) == 1


def test_in_a_job_what_does_not_ask_for_preemption_ends(monkeypatch):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", f"127.0.0.1:{free_port()}")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
  monkeypatch.setenv("JAX_PROCESS_ID", "0")
  process = body("""
from jaxmerge.cli import runner
runner.set_up_jax()
wait()
""")
  process.send_signal(signal.SIGTERM)
  returned, lines = told(process)
  assert returned == 4, lines
  assert lines[-1].startswith("jaxmerge.verb: interrupted; ")


def test_the_second_signal_does_not_wait_for_a_long_call():
  """As XLA's compiler: no handler of Python runs before it returns."""
  process = body("""
import hashlib
print("began", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
""")
  process.send_signal(signal.SIGTERM)
  time.sleep(0.6)
  process.send_signal(signal.SIGTERM)
  returned, lines = told(process)
  assert returned == 4
  assert len(lines) == 1


def test_an_echo_of_the_signal_does_not_stop_the_cleaning():
  process = body("""
try:
  wait()
finally:
  print("cleaning", flush=True)
  time.sleep(0.2)
  print("cleaned", flush=True)
""")
  for _ in range(2):  # as `timeout` does
    process.send_signal(signal.SIGTERM)
  stdout, stderr = process.communicate(timeout=50)
  assert process.returncode == 4
  assert stdout == "cleaning\ncleaned\n"
  assert len(stderr.splitlines()) == 1


def test_what_others_make_of_the_signal_is_not_told():
  process = body("""
import atexit, threading
def fails():
  time.sleep(0.2)
  raise RuntimeError("a thread")
class Finalized:
  def __del__(self):
    raise RuntimeError("a finalizer")
atexit.register(lambda: 1 / 0)
try:
  wait()
except KeyboardInterrupt as error:
  thread = threading.Thread(target=fails)
  thread.start()
  thread.join()
  del (lambda x: x)(Finalized()).x
""")
  process.send_signal(signal.SIGTERM)
  returned, lines = told(process)
  assert returned == 4
  assert len(lines) == 1
  assert lines[0].startswith("jaxmerge.verb: interrupted; ")


def test_a_name_that_would_act_on_the_terminal_is_escaped():
  error = errors.Terminated()
  error.add_note("saved \x1b[31m\udcff")
  text, code = errors.describe_interrupt(error)
  assert text == "interrupted; saved \\x1b[31m\\udcff"
  assert code == 4


def test_in_this_process_it_is_a_line_too(capsys):
  def main():
    raise KeyboardInterrupt

  assert runner.run("verb", main) == 130
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith("jaxmerge.verb: interrupted; what is not saved")


def interrupted(verb: str, run: Callable[[], None], capsys) -> str:
  assert runner.run(verb, run) == 130
  return capsys.readouterr().err.splitlines()[-1]


def stop(*args: object, **kwargs: object) -> None:
  raise KeyboardInterrupt


def test_what_has_no_output_yet_says_so(
  tiny_run, tmp_path, monkeypatch, capsys
):
  inputs = f"--inputs={tiny_run}@4,{tiny_run}@8"
  config = f"--config={ROOT}/configs/{{}}/{{}}.py"
  monkeypatch.setattr(merge, "run_streamed", stop)
  monkeypatch.setattr(task_scores, "load_params", stop)
  monkeypatch.setattr(convert.models, "convert", stop)
  for verb, argv in (
    (merge, [config.format("merge", "uniform"), inputs]),
    (evaluate, [config.format("evaluate", "tiny"), inputs]),
    (convert, [f"--input={tiny_run}@4", "--format=hf"]),
  ):
    argv = [*argv, f"--output={tmp_path / 'out'}"]
    line = interrupted("verb", partial(verb.main, argv), capsys)
    assert line == "jaxmerge.verb: interrupted; nothing was written"


def test_a_search_says_how_many_trials_are_finished(
  tiny_run, tmp_path, monkeypatch, capsys
):
  run = tmp_path / "run"
  shutil.copytree(tiny_run, run)
  count = iter(range(100))
  score = MergedLoss.score

  def stops(*args, **kwargs):
    if next(count) == 2:
      raise KeyboardInterrupt
    return score(*args, **kwargs)

  monkeypatch.setattr(MergedLoss, "score", stops)
  argv = [f"--config={ROOT}/configs/search/tiny.py", f"--workdir={run}"]
  line = interrupted("search", partial(search.main, argv), capsys)
  assert line == (
    "jaxmerge.search: interrupted; 2 of 5 trials are finished; the same "
    "command goes on from there"
  )


@pytest.mark.parametrize("name", ["__del__", "_xla_gc_callback"])
def test_a_signal_in_a_finalizer_is_not_passed_over(name):
  """What is raised there is printed and forgotten."""
  process = body(f"""
import os, signal
class Held:
  pass
def {name}(self):
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(0.1)
Held.__del__ = lambda self: {name}(self)
Held()
wait()
""")
  returned, lines = told(process)
  assert returned == 130
  assert len(lines) == 1
