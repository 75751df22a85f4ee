"""Methods that go by age take the inputs oldest first."""

import dataclasses
import json

import numpy as np
import pytest

from jaxmerge import merge
from jaxmerge.checkpoints.input_order import find_order
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.merging.method import METHODS
from tests.merging.fixtures import (
  command,
  hugging_face,
  loaded,
  step_directory,
)

SHELL = ("checkpoint-1000", "checkpoint-1500", "checkpoint-500")


def directory(path, value, **more):
  """One tensor, which says which input it is."""
  return hugging_face(path, {"a": np.full(2, value, np.float32)}, **more)


@pytest.fixture
def trail(tmp_path):
  """What a shell gives for checkpoint-*: value 2, then 3, then 1."""
  values = {"checkpoint-500": 1, "checkpoint-1000": 2, "checkpoint-1500": 3}
  return [directory(tmp_path / name, values[name]) for name in SHELL]


def merged(inputs, output, *words):
  words = [f"--inputs={','.join(map(str, inputs))}", *words]
  assert command(*words, f"--output={output}", "--allow_unrelated") == 0
  return loaded(output)["a"][0]


def test_wma_of_a_shells_order(trail, tmp_path, capsys):
  value = merged(trail, tmp_path / "out", "--config.method=wma")
  np.testing.assert_allclose(value, 14 / 6, rtol=1e-6)
  said = capsys.readouterr().out
  assert "oldest first, by the numbers in their names" in said


@pytest.mark.parametrize(
  # What measures needs a corpus: tests/test_merge_newton.py.
  "method",
  [n for n, m in METHODS.items() if m.ordered and not m.data],
)
def test_the_typed_order_of_known_steps_changes_nothing(
  trail, tmp_path, method
):
  words = [f"--config.method={method}"]
  if method in ("lawa", "secant"):
    words.append("--config.window=1")
  values = [
    merged(inputs, tmp_path / f"out{i}", *words)
    for i, inputs in enumerate((trail, sorted(trail), trail[::-1]))
  ]
  assert len({*values}) == 1


def test_the_dry_run_says_the_order(trail, tmp_path, capsys):
  typed = f"--inputs={','.join(map(str, trail))}"
  words = ("--config.method=ema", f"--output={tmp_path / 'out'}")
  assert command(typed, *words, "--allow_unrelated", "--dry_run") == 0
  lines = capsys.readouterr().out.splitlines()
  assert "checkpoint-500" in lines[-4]
  assert "checkpoint-1500" in lines[-2]
  assert lines[-1].startswith("inputs taken oldest first")


def test_weights_belong_to_the_inputs_as_typed(trail, tmp_path, monkeypatch):
  by_age = dataclasses.replace(METHODS["weights"], ordered=True)
  monkeypatch.setattr(merge, "METHODS", {"weights": by_age})
  words = ("--config.method=weights", "--weights=0.5,0.125,0.375")
  value = merged(trail, tmp_path / "out", *words)
  np.testing.assert_allclose(value, 0.5 * 2 + 0.125 * 3 + 0.375 * 1)


def order_of(paths):
  return find_order(open_inputs([str(path) for path in paths]))


def test_steps_of_the_trainer(tmp_path):
  paths = [directory(tmp_path / name, 1) for name in ("x", "y")]
  for path, step in zip(paths, (900, 300), strict=True):
    state = json.dumps({"global_step": step})
    (path / "trainer_state.json").write_text(state)
  order = order_of(paths)
  assert order.oldest_first_K == [1, 0]
  assert order.steps_K == [900, 300]


def test_steps_of_step_directories(tmp_path):
  tree = {"a": np.ones(2, np.float32)}
  paths = [
    step_directory(tmp_path / name, tree, step=step)
    for name, step in (("x", 40), ("y", 0))
  ]
  assert order_of(paths).oldest_first_K == [1, 0]


@pytest.mark.parametrize(
  ("names", "order"),
  [
    (("step900-tokens4B", "step1000-tokens5B", "step80-tokens1B"), [2, 0, 1]),
    (("step1000-unsharded", "step900-unsharded"), [1, 0]),
    (("s20/model", "s3/model"), [1, 0]),
    (("epoch_1-step_900", "epoch_0-step_500"), [1, 0]),
    (("epoch_1-step_500", "epoch_0-step_900"), None),  # contradict
    (("llama-13", "mistral-7"), None),  # of two trails
    (("final", "checkpoint-7"), None),
  ],
)
def test_numbers_in_names(tmp_path, names, order):
  found = order_of([directory(tmp_path / name, 1) for name in names])
  assert found.oldest_first_K == (order or list(range(len(names))))
  assert bool(found.steps_K) == bool(order)


@pytest.mark.parametrize(
  ("steps", "says"),
  [
    ((2, 1), "their steps and their names contradict"),
    ((7, 7), "two of them are of the same step"),
    ((7, None), "only some of the inputs record a step"),
  ],
)
def test_the_typed_order_counts_where_steps_cannot_be_known(
  tmp_path, capsys, steps, says
):
  paths = [
    directory(tmp_path / f"step{i}", i, step=step)
    for i, step in enumerate(steps)
  ]
  value = merged(paths[::-1], tmp_path / "out", "--config.method=wma")
  np.testing.assert_allclose(value, 1 / 3, rtol=1e-6)
  said = capsys.readouterr().out
  assert "inputs taken as typed, oldest first" in said
  assert says in said


def test_a_trainer_that_contradicts_jaxmerge_json(tmp_path):
  paths = [directory(tmp_path / n, 1, step=5) for n in ("x", "y")]
  (paths[0] / "trainer_state.json").write_text('{"global_step": 6}')
  assert "trainer_state.json contradict" in order_of(paths).why


def test_what_is_carried_comes_from_the_latest(tmp_path):
  paths = [
    directory(tmp_path / name, 1, files={"generation_config.json": name})
    for name in SHELL
  ]
  merged(paths, tmp_path / "out")
  carried = (tmp_path / "out/generation_config.json").read_text()
  assert carried == "checkpoint-1500"


def test_step_directories_are_sorted_by_their_steps(tmp_path):
  paths = [
    step_directory(tmp_path / n, {"a": np.full(2, v, np.float32)}, step=v)
    for n, v in (("x", 2), ("y", 1))
  ]
  typed = f"--inputs={','.join(map(str, paths))}"
  output = tmp_path / "out"
  assert command(typed, f"--output={output}", "--config.method=wma") == 0
  sources = read_metadata(output).provenance["sources"]
  assert [source["step"] for source in sources] == [1, 2]
  assert [source["weight"] for source in sources] == [1 / 3, 2 / 3]
