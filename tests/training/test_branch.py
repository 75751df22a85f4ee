"""A branch goes on from a step of a run as that run itself would."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from jaxmerge import convert, merge, pretrain
from jaxmerge.checkpoints.inputs import open_inputs, step_path
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.cli import runner
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import (
  canonical_json,
  hash_text,
  read_metadata,
)
from jaxmerge.training.branch import identity, start
from jaxmerge.training.config_checks import check_config
from jaxmerge.training.metrics import MetricsWriter, check_saved
from jaxmerge.training.optimizer import OPTIMIZERS
from jaxmerge.training.sources import sources_of
from tests.helpers import (
  Telling,
  config_file,
  config_of,
  contents,
  merge_into,
  no_corpus,
  quiet,
)


def config_with(**changes):
  """The tiny config with other keys, by their dotted names."""
  config = config_of("pretrain")
  with config.unlocked():
    for name, value in changes.items():
      section, _, key = name.rpartition("__")
      setattr(getattr(config, section) if section else config, key, value)
  return config


def branch(parent, workdir, progress=quiet, branch=True, **changes):
  config = config_with(branch=branch, **changes)
  pretrain.train(config, workdir, init_from=str(parent), progress=progress)


def records(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def leaves(workdir, step):
  return read_metadata(workdir / f"checkpoints/{step}").leaves


def assert_equal_from(start, run, workdir, steps):
  assert records(workdir) == records(run)[start:]
  for step in steps:
    assert leaves(workdir, step) == leaves(run, step)


def test_a_branch_is_its_parents_run_bit_for_bit(tiny_run, tmp_path):
  said = []
  workdir = tmp_path / "branch"
  telling = Telling(lambda *args: said.append(args[3]))
  branch(f"{tiny_run}@8", workdir, telling)
  assert "branching off at step 8" in said
  assert_equal_from(8, tiny_run, workdir, (12, 16))
  run = json.loads((workdir / "run.json").read_text())
  assert run["start"] == 8
  assert json.loads((tiny_run / "run.json").read_text())["start"] == 0
  assert run["run_id"] != read_metadata(tiny_run / "checkpoints/8").run_id
  assert read_metadata(workdir / "checkpoints/12").parent == f"{tiny_run}@8"
  # Done, it says so and changes nothing.
  before, said[:] = contents(workdir), []
  branch(f"{tiny_run}@8", workdir, telling)
  assert "going on from step 16" in said
  assert (workdir / "metrics.jsonl").read_bytes() == before["metrics.jsonl"]


@pytest.mark.parametrize(
  ("moment", "first"), [(10, "branching off at step 8"), (14, "going on from")]
)
def test_a_branch_that_is_killed_goes_on(tiny_run, tmp_path, moment, first):
  workdir = tmp_path / "branch"

  def interrupt(stage, done, total, text):
    if stage == "pretrain" and total and done == moment:
      raise KeyboardInterrupt

  said = []
  with pytest.raises(KeyboardInterrupt):
    branch(f"{tiny_run}@8", workdir, Telling(interrupt))
  branch(f"{tiny_run}@8", workdir, Telling(lambda *args: said.append(args[3])))
  assert said[-1] != said[0]
  assert any(text.startswith(first) for text in said)
  assert "metrics of 2 steps that were not saved are cut" in said
  assert_equal_from(8, tiny_run, workdir, (12, 16))


def test_a_copy_of_a_step_is_as_good(tiny_run, tmp_path):
  shutil.copytree(tiny_run / "checkpoints/8", tmp_path / "kept")
  branch(tmp_path / "kept", tmp_path / "branch")
  assert_equal_from(8, tiny_run, tmp_path / "branch", (12, 16))


@pytest.mark.parametrize("name", sorted({*OPTIMIZERS} - {"adamw"}))
def test_a_state_of_any_optimiser_is_saved_and_gone_on_from(tmp_path, name):
  changes = {
    "optimizer__name": name,
    "num_steps": 4,
    "save_every": 2,
    "validation_sequences": 1,
  }
  if name == "adafactor":
    changes["optimizer__min_factored_size"] = 16
  pretrain.train(config_with(**changes), tmp_path / "run", progress=quiet)
  branch(f"{tmp_path / 'run'}@2", tmp_path / "branch", **changes)
  assert_equal_from(2, tmp_path / "run", tmp_path / "branch", (4,))


def test_a_decay_branches_off_a_stable_run(tiny_run, tmp_path):
  workdir = tmp_path / "branch"
  decay = {
    "optimizer__schedule": "wsd",
    "optimizer__decay_steps": 4,
    "optimizer__decay_shape": "linear",
    "num_steps": 12,
  }
  branch(f"{tiny_run}@8", workdir, **decay)
  rates = np.array([record["learning_rate"] for record in records(workdir)])
  np.testing.assert_allclose(rates, 2e-3 * np.array([1, 0.75, 0.5, 0.25]))
  trunk = records(tiny_run)[8:12]
  assert records(workdir)[0]["loss"] == trunk[0]["loss"]
  assert records(workdir)[-1]["loss"] != trunk[-1]["loss"]
  with pytest.raises(InputError) as error:
    branch(f"{tiny_run}@8", workdir, **decay | {"num_steps": 16})
  assert str(error.value) == (
    f"{workdir} is the workdir of another run: config.num_steps was 12, is now "
    "16, on which the rates of its schedule depend; a new workdir may branch "
    "off, with --init_from=WORKDIR@STEP --config.branch=True"
  )
  # A longer decay, from within this one.
  branch(f"{workdir}@12", tmp_path / "on", **decay | {"num_steps": 16})
  assert [record["step"] for record in records(tmp_path / "on")] == [
    *range(13, 17)
  ]


def test_another_parent_or_none_is_another_run(tiny_run, tmp_path):
  workdir = tmp_path / "branch"
  branch(f"{tiny_run}@8", workdir, num_steps=9)
  before = contents(workdir)
  for parent, changes in (
    (f"{tiny_run}@4", {"branch": True}),
    (f"{tiny_run}@8", {}),
    ("", {}),
  ):
    with pytest.raises(InputError, match="is the workdir of another run"):
      pretrain.train(
        config_with(**changes), workdir, init_from=parent, progress=quiet
      )
  with pytest.raises(InputError, match="is the workdir of another run"):
    branch(f"{tiny_run}@8", tiny_run)
  assert contents(workdir) == before


def test_a_parent_is_more_than_its_parameters(tiny_run):
  [parent] = open_inputs([f"{tiny_run}@8"])
  later = dataclasses.replace(parent.metadata, step=9)
  moved = dataclasses.replace(parent.metadata, position=3)
  found = {
    identity(dataclasses.replace(parent, metadata=metadata))
    for metadata in (parent.metadata, later, moved)
  }
  assert len(found) == 3


def test_lines_of_a_branch_begin_after_its_parents_step(tiny_run, tmp_path):
  workdir = tmp_path / "branch"
  branch(f"{tiny_run}@8", workdir, num_steps=12)
  metrics = workdir / "metrics.jsonl"
  lines = metrics.read_text().splitlines(keepends=True)
  for edited, words in (
    (lines[1:], "no line for step 9"),
    ([lines[1], lines[0], *lines[2:]], "out of order"),
    ([lines[0].replace("9", "8", 1), *lines[1:]], "no line for step 9"),
  ):
    metrics.write_text("".join(edited))
    with pytest.raises(InputError, match=words):
      branch(f"{tiny_run}@8", workdir)
  later = lines[-1].replace("12", "13", 1)
  metrics.write_text("".join(lines) + later)
  kept, rest = check_saved(workdir, 12, "", start=8)
  assert (len(kept), len(rest)) == (4, 1)
  writer = MetricsWriter(workdir, 10, start=8)
  writer.close()
  assert writer.cut == 3
  assert metrics.read_text() == "".join(lines[:2])


def problems_of(parent, workdir, **changes):
  with pytest.raises(InputError) as error:
    branch(parent, workdir, **changes)
  return error.value.problems


def test_what_is_not_the_same_run_is_refused_at_once(
  tiny_run, tmp_path, monkeypatch
):
  monkeypatch.setattr(pretrain, "open_corpus", no_corpus)
  workdir, name = tmp_path / "new", f"--init_from {tiny_run}@8"
  found = problems_of(
    f"{tiny_run}@8",
    workdir,
    num_steps=8,
    seq_len=16,
    batch_size=4,
    seed=1,
    optimizer__name="lion",
  )
  assert [text.partition(";")[0] for text in found[:4]] == [
    f"config.num_steps 8 must be more than the step 8 of {name}: a branch "
    "counts from the beginning of the run that it leaves",
    f"{name}: config.seq_len was 32, is now 16",
    f"{name}: config.batch_size was 8, is now 4",
    f"{name}: config.seed was 0, is now 1",
  ]
  assert "another kind than config.optimizer.name=lion" in found[4]
  assert len(found) == 5
  [line] = problems_of(
    f"{tiny_run}@8", workdir, optimizer__name="sgd", optimizer__momentum=0.0
  )
  assert "1/0/count is in only one of the two (" in line
  # A guard changes the name of every leaf, and is told as one.
  guard, other = problems_of(
    f"{tiny_run}@8", workdir, step__max_skipped=2, optimizer__name="lion"
  )
  assert "config.step.max_skipped was 0, is now 2; its optimiser" in guard
  assert "another kind than config.optimizer.name=lion" in other
  [line] = problems_of(f"{tiny_run}@8", workdir, step__max_skipped=2)
  assert line == guard
  [line] = problems_of(f"{tiny_run}@8", workdir, model__intermediate_size=32)
  assert "model.intermediate_size is 64, here 32" in line
  [line] = problems_of("", workdir)
  assert "config.branch needs an --init_from" in line
  assert not workdir.exists()


def test_what_has_no_state_is_refused(tiny_run, tmp_path):
  convert.convert(f"{tiny_run}@8", tmp_path / "hf", "hf")
  [line] = problems_of(tmp_path / "hf", tmp_path / "new", num_steps=1)
  assert "has no optimiser state and no place in the data" in line
  [line] = problems_of("", tmp_path / "new", branch=False, branch_state="mean")
  assert line == "config.branch_state mean means nothing without config.branch"
  assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def merge_of(tiny_run, tmp_path_factory):
  """The mean of steps 4 and 8."""
  path = tmp_path_factory.mktemp("merge") / "8"
  merge_into(path, tiny_run)
  return path


def test_a_branch_of_a_merge_takes_the_state_that_is_asked_for(
  tiny_run, merge_of
):
  [parent] = open_inputs([str(merge_of)])
  _, trainer = check_config(config_with())
  trainer = trainer.with_tokenizer(parent.metadata.model["vocab_size"], 0)
  four, eight = (
    trainer.resume(step_path(tiny_run, step), step) for step in (4, 8)
  )
  merged = restore_params(merge_of)
  for state in ("newest", "mean", "zero"):
    found = start(parent, state, trainer)
    assert int(found.step) == 8
    jax.tree.map(np.testing.assert_array_equal, found.params, merged)
    adam, schedule = found.opt_state[1][0], found.opt_state[1][2]
    assert int(schedule.count) == 8
    assert int(adam.count) == (0 if state == "zero" else 8)
    first, last = (other.opt_state[1][0].mu for other in (four, eight))
    wanted = {
      "newest": last,
      "mean": jax.tree.map(lambda a, b: (a + b) / 2, first, last),
      "zero": jax.tree.map(np.zeros_like, last),
    }[state]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-12)
    jax.tree.map(close, adam.mu, wanted)


def test_averages_of_a_branch_of_a_merge_begin_at_the_merge(merge_of):
  [parent] = open_inputs([str(merge_of)])
  config = config_with(branch=True)
  config.averages = {"ema_decay": 0.5}
  _, trainer = check_config(config)
  size = parent.metadata.model["vocab_size"]
  found = start(parent, "newest", trainer.with_tokenizer(size, 0))
  merged = restore_params(merge_of)
  jax.tree.map(np.testing.assert_array_equal, found.averages["ema"], merged)


def test_a_branch_of_a_merge_goes_on_at_its_newest_step(
  tiny_run, merge_of, tmp_path
):
  said, workdir = [], tmp_path / "branch"
  telling = Telling(lambda *args: said.append(args[3]))
  branch(merge_of, workdir, telling, num_steps=10, branch_state="mean")
  assert "branching off at step 8" in said
  told = records(workdir)
  assert [record["step"] for record in told] == [9, 10]
  trunk = records(tiny_run)[8:10]
  assert [r["learning_rate"] for r in told] == [
    r["learning_rate"] for r in trunk
  ]
  # The same batch, to other parameters.
  assert 0 < abs(told[0]["loss"] - trunk[0]["loss"]) < 0.5
  # Another choice is another run.
  found = problems_of(merge_of, workdir, num_steps=10)
  assert any(
    "config.branch_state was 'mean', is now 'newest'" in f for f in found
  )


def test_sources_are_found_and_must_be_those_that_were_merged(
  workdir, tmp_path
):
  moved, merged = tmp_path / "moved", workdir / "merged/8"
  merge_into(merged, workdir)
  new = tmp_path / "new"
  problems = functools.partial(problems_of, num_steps=8)
  last = "config.num_steps 8 must be more than the step 8"
  [line] = problems(merged, new)
  assert last in line
  # Moved with the run that they are of, they are found there.
  workdir.rename(moved)
  merged = moved / "merged/8"
  for state in ("newest", "mean", "zero"):
    [line] = problems(merged, new, branch_state=state)
    assert last in line
  # Another step in the place of one.
  shutil.rmtree(moved / "checkpoints/4")
  [line, _] = problems(merged, new, branch_state="mean")
  assert line == (
    f"--init_from {merged}: its source {workdir}@4, step 4, is not there, or "
    "damaged; a branch takes optimiser state from it"
  )
  [line] = problems(merged, new, branch_state="newest")
  assert last in line
  leaf = moved / "checkpoints/8/metadata/metadata"
  value = json.loads(leaf.read_text())
  leaf_of = value["leaves"]["params"]
  name = sorted(leaf_of)[0]
  leaf_of[name]["digest"] = leaf_of[name]["digest"][::-1]
  del value["digest"]
  value["digest"] = hash_text(canonical_json(value))
  leaf.write_text(json.dumps(value))
  four, eight, _ = problems(merged, new, branch_state="mean")
  assert "step 4, is not there, or damaged" in four
  assert "step 8, has other parameters than those that were merged" in eight
  [line] = problems(merged, new, branch_state="zero")
  assert last in line


def test_a_merge_that_says_no_place_is_refused(tiny_run, tmp_path):
  merged, new = tmp_path / "8", tmp_path / "new"
  for path, inputs, weights in (
    (merged, (f"{tiny_run}@4", f"{tiny_run}@8"), (-0.5, 1.5)),
    (tmp_path / "twice", (str(merged), f"{tiny_run}@12"), (0.5, 0.5)),
  ):
    config = config_of("merge", "uniform", method="weights")
    merge.merge(config, inputs, path, weights=weights, progress=quiet)
  [line, _] = problems_of(merged, new, num_steps=8, branch_state="mean")
  assert "has negative weights" in line
  [line, _] = problems_of(
    tmp_path / "twice", new, num_steps=8, branch_state="mean"
  )
  assert "is merged, no step of a run" in line
  [parent] = open_inputs([str(merged)])
  source = {**parent.metadata.provenance["sources"][0], "run_id": "other"}
  provenance = {"sources": [source, parent.metadata.provenance["sources"][1]]}
  other = dataclasses.replace(
    parent,
    metadata=dataclasses.replace(parent.metadata, provenance=provenance),
  )
  with pytest.raises(InputError, match="no merge of different steps of one"):
    sources_of(other, "zero")


def test_another_corpus_is_refused(tiny_run, tmp_path):
  workdir = tmp_path / "new"
  shutil.copy(tiny_run / "tokenizer.json", tmp_path)
  tokenizer = {
    "data__tokenizer_path": str(tmp_path / "tokenizer.json"),
    "data__vocab_size": 0,
  }
  (tmp_path / "text").mkdir()
  (tmp_path / "text/a.txt").write_text("a line of text\n" * 999)
  files = {
    "data__source": "text_files",
    "data__globs": (f"{tmp_path}/text",),
    **tokenizer,
  }
  [line] = problems_of(f"{tiny_run}@8", workdir, **files)
  assert "is of another corpus" in line
  # A part of the same text is known by its tokens alone.
  part = {"data__max_documents": 80, **tokenizer}
  [line] = problems_of(f"{tiny_run}@8", workdir, **part)
  assert "is of other tokens" in line
  assert not workdir.exists()


def test_a_dry_run_says_where_a_run_starts(tiny_run, tmp_path, capsys):
  def told(*flags):
    argv = [
      f"--config={config_file('pretrain')}",
      f"--workdir={tmp_path / 'new'}",
      "--dry_run",
      *flags,
    ]
    assert runner.run("pretrain", lambda: pretrain.main(argv)) == 0
    return capsys.readouterr().out

  parent = f"--init_from={tiny_run}@8"
  said = told(parent, "--config.branch=True")
  assert (
    f"starts from: step 8 of {tiny_run}@8, with its optimiser state and its "
    "place in the data\n"
  ) in said
  assert "steps to train: 8 (2,048 tokens)\n" in said
  assert "checkpoints to save: 2, " in said
  assert f"starts from: the parameters of {tiny_run}@8\n" in told(parent)
  said = told()
  assert "starts from: random parameters of config.seed 0\n" in said
  assert "steps to train: 16 (4,096 tokens)\n" in said
  assert not (tmp_path / "new").exists()


def test_another_optimiser_needs_other_memory(tmp_path, capsys):
  def state(name):
    config = config_with(optimizer__name=name)
    pretrain.train(config, tmp_path / "new", dry_run=True, progress=quiet)
    said = capsys.readouterr().out.split("state per device: ")[1]
    return float(said.split()[0])

  adamw, lion, sgd = map(state, ("adamw", "lion", "sgd"))
  assert adamw == pytest.approx(lion * 4 / 3, rel=0.02)
  assert lion == pytest.approx(sgd, rel=0.02)
