"""What a user could lose or be misled by is refused, and says why."""

import dataclasses
import os
import shutil
import socket

import jax
import jax.numpy as jnp
import pytest

from jaxmerge import (
  merge,
  pretrain,
  process_liveness,
  quickstart,
)
from jaxmerge.checkpoints.compatibility import check_mergeable
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.checkpoints.models import load_model, save_model
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.config_reading import read
from jaxmerge.errors import InputError
from jaxmerge.evaluation import held_out_splits
from jaxmerge.evaluation.config import EvaluateConfig, SearchConfig
from jaxmerge.evaluation.evaluator import Setting
from jaxmerge.evaluation.evaluators.heldout_loss import heldout_loss
from jaxmerge.evaluation.held_out_splits import open_scorer
from jaxmerge.evaluation.merged_loss import MergedLoss
from jaxmerge.files import replace_directory, write_text
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.merging.groups import one_group
from jaxmerge.merging.resident import Trees
from jaxmerge.parallel.mesh import make_mesh
from tests.helpers import REPORT, config_of, merge_into, quiet


def test_overwrite_replaces_a_checkpoint_and_nothing_else(tiny_run, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(tiny_run, run)
  before = sorted(os.walk(run))
  for place in (run, run / "checkpoints", run / "checkpoints/4", tmp_path):
    with pytest.raises(InputError, match="not a checkpoint|among the checkp"):
      merge_into(place, tiny_run, overwrite=True)
  assert sorted(os.walk(run)) == before
  for _ in range(2):
    merge_into(tmp_path / "out", tiny_run, overwrite=True)
  assert read_metadata(tmp_path / "out").kind == "merged"


def test_nothing_is_written_among_the_checkpoints_of_a_run(tiny_run, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(tiny_run, run)
  with pytest.raises(InputError, match="could then not go on"):
    merge_into(run / "checkpoints/99", tiny_run)
  assert not (run / "checkpoints/99").exists()


def test_a_replacement_killed_half_way_is_taken_back(tmp_path):
  path = tmp_path / "out"
  dead = f"{process_liveness.this_process().host}-999999999-0123abcd"
  (tmp_path / f".out.old-{dead}").mkdir()
  (tmp_path / f".out.old-{dead}/kept").write_text("the earlier one")
  (tmp_path / f".out.tmp-{dead}").mkdir()
  elsewhere = tmp_path / ".out.tmp-other-host-999999999-0123abcd"
  elsewhere.mkdir()
  with pytest.raises(InputError), replace_directory(path):
    raise InputError("no new one")
  assert (path / "kept").read_text() == "the earlier one"
  # Another machine's process may still be at work.
  assert sorted(p.name for p in tmp_path.iterdir()) == [elsewhere.name, "out"]


def test_a_corpus_that_changed_since_training_is_not_held_out(tiny_run):
  metadata = read_metadata(tiny_run / "checkpoints/8")
  changed = dataclasses.replace(metadata, corpus="0" * 64)
  mesh = make_mesh(data=-1, fsdp=1, tensor=1)

  def scorer(metadata, **kwargs):
    return open_scorer(
      Setting(metadata, mesh, 8, **kwargs), lambda text: None, heldout_loss
    )

  assert scorer(metadata).corpus.identity == metadata.corpus
  with pytest.raises(InputError, match="may have been trained on"):
    scorer(changed)
  scorer(changed, allow_unrelated=True)


def test_a_start_from_another_tokenizer_is_refused(tiny_run, tmp_path):
  config = config_of("pretrain")
  config.data.max_documents = 70
  with pytest.raises(InputError, match="its tokenizer is another one"):
    pretrain.train(
      config, tmp_path / "run", init_from=f"{tiny_run}@8", progress=quiet
    )
  config.data.tokenizer_path = str(tiny_run / "tokenizer.json")
  config.data.vocab_size = 299
  with pytest.raises(InputError, match="has 300 tokens; 0 takes what it has"):
    pretrain.train(config, tmp_path / "run", progress=quiet)
  config.data.vocab_size = 0
  config.num_steps = 1
  pretrain.train(
    config, tmp_path / "new", init_from=f"{tiny_run}@8", progress=quiet
  )
  with pytest.raises(
    InputError, match="another run: it started from another --init_from"
  ):
    pretrain.train(
      config, tmp_path / "new", init_from=f"{tiny_run}@4", progress=quiet
    )


def test_models_of_no_known_run_are_not_taken_for_related(tiny_run, tmp_path):
  model = load_model(tiny_run / "checkpoints/8")
  for name in ("a", "b"):
    save_model(model, tmp_path / name)
  both = open_inputs([str(tmp_path / "a"), str(tmp_path / "b")])
  with pytest.raises(InputError, match="says of which run it is"):
    check_mergeable(both)
  check_mergeable(both, allow_unrelated=True)


def test_a_run_that_has_diverged_cannot_be_searched(tiny_run):
  metadata = read_metadata(tiny_run / "checkpoints/8")
  mesh = make_mesh(data=-1, fsdp=1, tensor=1)
  scorer = open_scorer(
    Setting(metadata, mesh, 8), lambda text: None, heldout_loss
  )
  params = restore_params(tiny_run / "checkpoints/8")
  diverged = jax.tree.map(lambda x: x * jnp.nan, params)
  with pytest.raises(InputError, match="not a finite number"):
    MergedLoss(
      Trees([params, diverged]),
      scorer.on("search", 8),
      one_group(params),
    )


def test_settings_that_would_mean_nothing_are_refused():
  config = config_of("evaluate")
  config.data.max_documents = 5
  with pytest.raises(InputError, match="max_documents means nothing"):
    read(EvaluateConfig, config)
  config = config_of("search")
  config.report_dir = "checkpoints"
  with pytest.raises(InputError, match="the run's own checkpoints"):
    read(SearchConfig, config)
  config = config_of("pretrain")
  config.optimizer.learning_rate = -0.1
  config.optimizer.warmup_steps = -1
  with pytest.raises(InputError, match=r"learning_rate.*\n.*warmup_steps"):
    pretrain.check_config(config)


def test_a_bad_source_leaves_no_workdir(tmp_path):
  config = config_of("pretrain")
  config.data.source = "no_such_corpus"
  with pytest.raises(InputError):
    pretrain.train(config, tmp_path / "run", progress=quiet)
  assert not (tmp_path / "run").exists()


def test_weights_of_zero_are_not_read(tiny_run, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(tiny_run, run)
  shutil.rmtree(run / "checkpoints/4/params")
  merge.merge(
    config_of("merge", "weights"),
    [f"{run}@4", f"{run}@8"],
    tmp_path / "out",
    weights=[0, 1],
    progress=quiet,
  )
  merged = restore_params(tmp_path / "out")
  alone = restore_params(run / "checkpoints/8")
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), merged, alone))


def test_a_container_that_numbers_its_processes_writes_files(
  tmp_path, monkeypatch
):
  """As in Docker: the numbering is a part of temporary names."""
  monkeypatch.setattr(process_liveness, "_INITIAL_NUMBERING", 0)
  process_liveness._host.cache_clear()
  process_liveness._described.cache_clear()
  try:
    assert process_liveness.this_process().host != socket.gethostname()
    write_text(tmp_path / "new", "text")
    with replace_directory(tmp_path / "out") as temporary:
      temporary.mkdir()
  finally:
    process_liveness._host.cache_clear()
    process_liveness._described.cache_clear()
  assert (tmp_path / "new").read_text() == "text"
  assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "out"]


def test_an_output_that_another_process_has_made_is_left_alone(tmp_path):
  path = tmp_path / "out"

  def write_while_another_does():
    with replace_directory(path, overwrite=False) as temporary:
      temporary.mkdir()
      path.mkdir()
      (path / "theirs").write_text("whole")

  with pytest.raises(InputError, match="made by another process"):
    write_while_another_does()
  assert [p.name for p in tmp_path.iterdir()] == ["out"]
  assert (path / "theirs").read_text() == "whole"


def test_a_merge_that_measures_checks_its_corpus_first(
  tiny_run, tmp_path, monkeypatch
):
  """Also a dry run; a plain merge needs none."""

  def no_corpus(*args, **kwargs):
    raise AssertionError("a corpus is prepared before the cheap checks")

  monkeypatch.setattr(held_out_splits, "open_corpus", no_corpus)
  monkeypatch.setattr(held_out_splits, "content_hash", lambda s: "another")
  config = config_of("merge", "uniform")
  config.method = "greedy"
  config.batch_size = 7
  inputs = [f"{tiny_run}@4", f"{tiny_run}@8"]
  config.mesh.data = 9
  for dry_run in (True, False):
    with pytest.raises(InputError) as told:
      merge.merge(
        config, inputs, tmp_path / "out", dry_run=dry_run, progress=quiet
      )
    assert "does not fit" in str(told.value)
    assert "is no longer what step 8 was trained on" in str(told.value)
  config.method = "uniform"
  config.mesh.data = -1
  merge.merge(config, inputs, tmp_path / "out", progress=quiet)


def test_the_quickstart_looks_at_what_it_will_write_before_it_trains(tmp_path):
  workdir = tmp_path / "run"
  (workdir / REPORT).mkdir(parents=True)
  (workdir / f"{REPORT}/results.json").write_text("mine")
  verbs = ("pretrain", "search", "evaluate")
  with pytest.raises(InputError, match="search: .*results.json"):
    quickstart.quickstart(
      workdir, {verb: config_of(verb) for verb in verbs}, progress=quiet
    )
  assert [p.name for p in workdir.iterdir()] == ["search"]
