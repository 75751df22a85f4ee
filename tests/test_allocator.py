"""Whether freed memory stays, each in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

from jaxmerge import allocator, pretrain
from tests.helpers import ROOT, Telling, config_of

if platform.libc_ver()[0] != "glibc":
  pytest.skip("malloc is not glibc's", allow_module_level=True)

# Pages in memory, not faults: huge pages make these few.
COUNT = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def resident():
  return int(open("/proc/self/statm").read().split()[1]) * 4096
SIZE = 2**26
before = resident()
block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(SIZE)))
libc.memset(block, 1, ctypes.c_size_t(SIZE))
assert resident() - before > 0.9 * SIZE
libc.free(block)
print("kept" if resident() - before > SIZE / 2 else "returned")
"""
# A verb and its runner without their seconds of imports.
LAUNCH = """
import sys, types
from jaxmerge.cli import launch
def stand_in(name, **functions):
  sys.modules[name] = types.ModuleType(name)
  vars(sys.modules[name]).update(functions)
_, verb, *_ = sys.argv
stand_in(f"jaxmerge.{verb}", main=lambda argv: None)
stand_in("jaxmerge.cli.runner", run=lambda verb, main: main())
launch.run(verb)
"""


def told_by(code: str, *argv: str, **environment: str) -> str:
  """The last line that a process of Python prints."""
  done = subprocess.run(
    [sys.executable, "-c", code, *argv],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
  ("verb", "argv", "expected"),
  [
    ("pretrain", [], "kept"),
    ("search", ["--return_memory=false"], "kept"),
    ("evaluate", ["-return_memory"], "returned"),
    ("quickstart", ["--workdir=x", "--return_memory=True"], "returned"),
    ("merge", [], "returned"),
  ],
)
def test_a_verb_that_computes_keeps_its_memory(verb, argv, expected):
  assert told_by(LAUNCH + COUNT, verb, *argv) == expected


def test_an_import_changes_nothing():
  assert told_by("import jaxmerge.allocator, jaxmerge.errors" + COUNT) == (
    "returned"
  )


def test_beside_an_accelerator_nothing_changes():
  code = """
from jaxmerge import allocator
allocator._ACCELERATORS = ("/dev/null",)
print(allocator.keep_memory(), repr(allocator.advice()))
"""
  assert told_by(code, JAX_PLATFORMS="") == "False ''"
  assert told_by(code) == "True ''"


def test_after_jax_there_is_advice(monkeypatch):
  import jaxlib  # noqa: F401

  monkeypatch.setattr(allocator, "_is_decided", False)
  assert not allocator.keep_memory()
  assert "keep_memory" in allocator.advice()
  assert not allocator.keep_memory(["--return_memory"])
  assert not allocator.advice()  # it is as asked for


@pytest.mark.parametrize("is_decided", [False, True])
def test_a_run_as_a_library_is_told_once(workdir, monkeypatch, is_decided):
  monkeypatch.setattr(allocator, "_is_decided", is_decided)
  notes = []
  progress = Telling(lambda name, done, of, text: notes.append(text))
  pretrain.train(config_of("pretrain"), workdir, progress=progress)
  assert len([n for n in notes if "keep_memory" in n]) == (not is_decided)
