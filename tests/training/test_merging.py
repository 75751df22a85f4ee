"""Merges of the newest checkpoints of a run, beside it."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxmerge import pretrain
from jaxmerge.checkpoints import store
from jaxmerge.checkpoints.inputs import open_inputs, step_path
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import abstract_params, read_metadata
from jaxmerge.merging.average import weighted_average
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
from jaxmerge.training.merging import Merging, MergingConfig
from tests.helpers import Telling, config_of, contents, quiet


def train(workdir, progress=quiet, num_steps=16, **merging):
  config = config_of("pretrain", num_steps=num_steps)
  config.merging = merging
  pretrain.train(config, workdir, progress=progress)


def records(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return {record["step"]: record for record in map(json.loads, lines)}


def equal(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def params_of(workdir, steps):
  return [store.restore_params(step_path(workdir, step)) for step in steps]


def test_a_run_is_the_same_with_merges_and_without(tiny_run, tmp_path):
  workdir = tmp_path / "run"
  train(workdir, every=1, window=2, how="search", trials=6, save="all")
  plain, merged = records(tiny_run), records(workdir)
  for step, record in merged.items():
    told = {k: v for k, v in record.items() if k.startswith("merged")}
    assert {k: v for k, v in record.items() if k not in told} == plain[step]
    if step not in (8, 12, 16):
      assert not told
      continue
    leaves = [
      read_metadata(step_path(run, step)).leaves for run in (tiny_run, workdir)
    ]
    assert leaves[0] == leaves[1]
    # Each checkpoint alone is among what a search tries.
    assert told["merged_loss"] <= record["validation_loss"]
    weights = [told["merged_weight_1"], told["merged_weight_0"]]
    assert sum(weights) == pytest.approx(1)
    found = store.restore_params(workdir / f"merged/{step}")
    trees = params_of(workdir, (step - 4, step))
    assert equal(found, weighted_average(trees, weights))
    [checkpoint] = open_inputs([str(workdir / f"merged/{step}")])
    sources = checkpoint.metadata.provenance["sources"]
    assert checkpoint.metadata.kind == "merged"
    assert [s["name"] for s in sources] == [
      f"{workdir}@{step - 4}",
      f"{workdir}@{step}",
    ]
    assert [s["weight"] for s in sources] == weights


def test_a_run_that_is_killed_merges_the_same(tmp_path):
  merging = {"every": 1, "window": 3, "save": "last", "num_steps": 12}
  workdir = tmp_path / "whole/run"
  train(workdir, **merging)
  assert [path.name for path in (workdir / "merged").iterdir()] == ["12"]
  whole = {
    name: inside
    for name, inside in contents(workdir / "merged").items()
    if "metadata/metadata" in name
  }

  def interrupt(stage, done, total, text):
    if stage == "pretrain" and total and done == 10:
      raise KeyboardInterrupt

  lines = (workdir / "metrics.jsonl").read_bytes()
  shutil.rmtree(workdir)
  with pytest.raises(KeyboardInterrupt):
    train(workdir, Telling(interrupt), **merging)
  train(workdir, **merging)
  assert (workdir / "metrics.jsonl").read_bytes() == lines
  again = contents(workdir / "merged")
  assert [path.name for path in (workdir / "merged").iterdir()] == ["12"]
  assert {name: again[name] for name in whole} == whole


def merging_of(workdir, score, start=0, **changes):
  params = abstract_params(read_metadata(step_path(workdir, 4)))
  target = store.with_shardings(params, shardings(params, make_mesh()))
  config = MergingConfig(every=1, **changes)
  return Merging(config, workdir, 4, start, target, score)


def test_the_newest_are_merged_that_there_are(workdir):
  made = []

  def score(tree):
    made.append(tree)
    return 2.5

  def measured(step, params, **changes):
    merging = merging_of(workdir, score, **changes)
    return merging.measure(step, params, describe=None)

  trees = params_of(workdir, (4, 8, 12, 16))
  assert measured(4, trees[0]) == {}
  assert measured(16, trees[3], start=12) == {}
  for steps, changes in (
    ((8, 12, 16), {"window": 3}),
    ((4, 8, 12, 16), {"window": 9}),
    ((12, 16), {"window": 9, "start": 8}),
  ):
    assert measured(16, trees[3], **changes) == {"merged_loss": 2.5}
    used = trees[-len(steps) :]
    assert equal(made.pop(), weighted_average(used, [1] * len(used)))
  shutil.rmtree(step_path(workdir, 8))
  assert measured(16, trees[3], window=3)
  assert equal(made.pop(), weighted_average(trees[2:], [1, 1]))
  # What is of no use neither ends the run nor is written.
  made.clear()
  worthless = merging_of(workdir, lambda tree: float("nan"), window=3)
  assert worthless.measure(16, trees[3], describe=None) == {}


@pytest.mark.parametrize("window", [2, 3])
def test_a_search_finds_the_weights_and_keeps_to_its_trials(workdir, window):
  steps = (8, 12, 16)[-window:]
  trees = params_of(workdir, steps)
  wanted = weighted_average(trees, [0.2, 0.5, 0.3][-window:])
  scores = []

  def score(tree):
    gaps = jax.tree.map(lambda a, b: float(np.sum((a - b) ** 2)), tree, wanted)
    scores.append(sum(jax.tree.leaves(gaps)))
    return scores[-1]

  merging = merging_of(workdir, score, window=window, how="search", trials=16)
  found = merging.measure(16, trees[-1], describe=None)
  assert len(scores) == 16
  assert found["merged_loss"] == min(scores)
  weights = [found[f"merged_weight_{age}"] for age in range(window)][::-1]
  expected = np.array([0.2, 0.5, 0.3])[-window:]
  np.testing.assert_allclose(weights, expected / expected.sum(), atol=0.02)


def test_when_checkpoints_are_merged():
  def due(start=0, **changes):
    config = MergingConfig(**changes)
    merging = Merging(config, None, 4, start, None, None)
    return [step for step in range(start + 1, 30) if merging.is_due(step)]

  assert due(every=2) == [8, 16, 24]
  assert due(every=2, start=5) == [12, 20, 28]
  assert due() == []


def test_merges_that_cannot_be_are_refused(tmp_path):
  with pytest.raises(InputError) as error:
    train(tmp_path / "run", every=5, how="search", trials=12, window=6)
  assert error.value.problems == [
    "config.merging.every 5 merges for the first time at step 20, after the "
    "last of config.num_steps 16",
    "config.merging.trials 12 must be 14 or more with a config.merging.window "
    "of 6: half of them are each checkpoint alone and their mean",
  ]
  config = config_of("pretrain", memory_budget_gb=0.0006)
  config.merging = {"every": 1, "window": 99}
  pretrain.train(config, tmp_path / "run", dry_run=True, progress=quiet)
  config.merging = {"every": 1, "window": 99, "how": "search", "trials": 200}
  with pytest.raises(InputError, match="needs 99 trees of parameters"):
    pretrain.train(config, tmp_path / "run", progress=quiet)
  assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_costs_a_merge_and_no_run(tiny_run, tmp_path):
  workdir, notes = tmp_path / "run", []
  train(workdir, num_steps=12)
  file = max(
    (workdir / "checkpoints/8/params").rglob("*"),
    key=lambda path: path.stat().st_size,
  )
  file.write_bytes(b"0" * file.stat().st_size)
  progress = Telling(lambda name, done, of, text: notes.append(text))
  train(workdir, progress, every=1, window=3)
  assert any(note.startswith("no merge at step 16: ") for note in notes)
  assert records(workdir)[16] == records(tiny_run)[16]


def test_a_last_merge_takes_the_place_of_the_runs_own_alone(tiny_run, tmp_path):
  """Not that of one that was put beside it under another number."""
  workdir = tmp_path / "run"
  train(workdir, num_steps=8, every=1, window=2, save="last")
  shutil.copytree(workdir / "merged/8", workdir / "merged/4008")
  train(workdir, num_steps=12, every=1, window=2, save="last")
  names = sorted(path.name for path in (workdir / "merged").iterdir())
  assert names == ["12", "4008"]
