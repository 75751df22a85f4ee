"""How often a merge is traced and compiled, and what it imports."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxmerge.merging.method import METHODS
from tests.helpers import ROOT
from tests.merging.fixtures import hugging_face, run
from tests.merging.test_streaming import merged_by

STREAMED = [name for name, method in METHODS.items() if not method.data]
_TRACING = "/jax/core/compile/jaxpr_trace_duration"
_COMPILING = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def programs():
  """Names of the events of tracing and compiling, as they happen."""
  events = []

  def listen(event, seconds, **_):
    del seconds
    events.extend([event] if event in (_TRACING, _COMPILING) else [])

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  jax.monitoring.unregister_event_duration_listener(listen)


def directories(folder, names, count=3):
  rng = np.random.default_rng(0)

  def tensors():
    return {n: rng.normal(size=(5, 3)).astype(np.float32) for n in names}

  return [
    hugging_face(folder / f"{k}", tensors(), step=k) for k in range(count)
  ]


@pytest.mark.parametrize("method", STREAMED)
def test_another_name_is_no_other_program(tmp_path, programs, method):
  first = directories(tmp_path / "first", ["a", "b"])
  merged_by(method, first, tmp_path / "out")
  assert {_TRACING, _COMPILING} <= {*programs} or not METHODS[method].on_tensors
  programs.clear()
  more = directories(tmp_path / "more", [f"layers.{n}.x" for n in range(40)])
  merged_by(method, more, tmp_path / "more out")
  assert not programs


def test_another_seed_and_scale_are_no_other_program(tmp_path, programs):
  base, *inputs = directories(tmp_path / "in", ["a"])
  for seed in (1, 2):
    programs.clear()
    changes = {"base": str(base), "seed": seed, "scale": 0.1 * seed}
    run(inputs, tmp_path / f"out {seed}", "dare", changes=changes)
  assert not programs


def test_a_merge_of_tensors_imports_no_flax_and_no_orbax(tmp_path):
  inputs = directories(tmp_path / "in", ["a"], 2)
  words = [
    f"--config={ROOT / 'configs/merge/uniform.py'}",
    f"--inputs={','.join(map(str, inputs))}",
    f"--output={tmp_path / 'out'}",
  ]
  code = (
    "import sys; from jaxmerge import merge; merge.main(sys.argv[1:]);"
    "print({'flax', 'optax', 'orbax', 'tensorstore'} & set(sys.modules))"
  )
  said = subprocess.run(
    [sys.executable, "-c", code, *words],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    check=True,
    capture_output=True,
    text=True,
  )
  assert said.stdout.splitlines()[-1] == "set()"
