"""Damaged and foreign files where the verbs read them: a message, exit code 2.

Nothing is written, and nothing waits for ever.
"""

import json
import os
import shutil

import optuna
import pytest

from jaxmerge import evaluate, merge, pretrain, search
from jaxmerge.bayesopt.study.identity import check_identity
from jaxmerge.cli import runner
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import canonical_json, hash_text
from jaxmerge.training import run
from tests.helpers import REPORT, ROOT, Telling, config_of, contents

VERBS = {
  "pretrain": pretrain,
  "search": search,
  "evaluate": evaluate,
  "merge": merge,
}


def words_of(verb, workdir):
  config = "uniform" if verb == "merge" else "tiny"
  words = [f"--config={ROOT}/configs/{verb}/{config}.py"]
  if verb in ("pretrain", "search"):
    words.append(f"--workdir={workdir}")
  if verb in ("evaluate", "merge"):
    words.append(f"--inputs={workdir}@8,{workdir}@12")
  if verb == "merge":
    words.append(f"--output={workdir.parent / 'out'}")
  return words


def refused(capsys, verb, workdir, *more):
  """What a verb says that must refuse, and must leave all as it is."""
  before = contents(workdir.parent)
  words = [*words_of(verb, workdir), *more]
  code = runner.run(verb, lambda: VERBS[verb].main(words))
  said = capsys.readouterr().err
  assert code == 2, said
  assert contents(workdir.parent) == before
  return said


def edited(path, **changed):
  value = {**json.loads(path.read_text()), **changed}
  path.write_text(json.dumps(value))


def signed(path, change):
  """Changes metadata and makes its digest fit again."""
  value = json.loads(path.read_text())
  change(value)
  del value["digest"]
  value["digest"] = hash_text(canonical_json(value))
  path.write_text(json.dumps(value))


@pytest.mark.parametrize("verb", ["search", "evaluate", "merge"])
def test_a_step_under_the_number_of_another_is_refused(workdir, capsys, verb):
  steps = workdir / "checkpoints"
  (steps / "12").rename(steps / "x")
  (steps / "8").rename(steps / "12")
  (steps / "x").rename(steps / "8")
  said = refused(capsys, verb, workdir)
  assert "checkpoints/12 is damaged: its metadata is of step 8" in said


def test_a_run_does_not_go_on_from_a_renamed_step(workdir, capsys):
  shutil.rmtree(workdir / "checkpoints/16")
  (workdir / "checkpoints/12").rename(workdir / "checkpoints/16")
  said = refused(capsys, "pretrain", workdir)
  assert "checkpoints/16 is damaged: its metadata is of step 12" in said


@pytest.mark.parametrize(
  "name", ["run.json", "metrics.jsonl", "tokenizer.json"]
)
def test_a_pipe_in_the_workdir_is_not_waited_for(workdir, capsys, name):
  (workdir / name).unlink()
  os.mkfifo(workdir / name)
  said = refused(capsys, "pretrain", workdir)
  assert name in said
  assert "not a file" in said


@pytest.mark.parametrize(
  "changed",
  [
    {"run_id": "0" * 16},
    {"run_id": 5},
    {"parent": "x"},
    {"corpus": 3},
    {"config": []},
    {"config": {"seed": "0"}},
    {"config": {"seed": 10**400}},
  ],
)
def test_a_changed_run_json_is_damaged_not_another_run(
  workdir, capsys, changed
):
  edited(workdir / "run.json", **changed)
  said = refused(capsys, "pretrain", workdir)
  assert "run.json is damaged" in said
  assert "another run" not in said


@pytest.mark.parametrize("text", ["null", "[]", "{}", '{"config": {}}'])
def test_another_json_is_no_run(tmp_path, text):
  (tmp_path / run.NAME).write_text(text)
  with pytest.raises(InputError, match="damaged: it (does|has)"):
    run.check_workdir(tmp_path, run.known_parts({}, content="", parent=""))


def test_a_changed_tokenizer_is_kept(workdir, capsys):
  (workdir / "tokenizer.json").write_text("{}")
  said = refused(capsys, "pretrain", workdir)
  assert "tokenizer.json is not what the run began with" in said


def test_files_beside_other_checkpoints_are_not_taken_for_a_run(
  tmp_path, capsys
):
  workdir = tmp_path / "mine"
  (workdir / "checkpoints/epoch-1").mkdir(parents=True)
  (workdir / "tokenizer.json").write_text("mine")
  assert "it is not the workdir" in refused(capsys, "pretrain", workdir)


def test_checkpoints_that_are_a_file_stop_a_run_before_it_begins(
  tmp_path, capsys
):
  workdir = tmp_path / "mine"
  workdir.mkdir()
  (workdir / "checkpoints").write_text("x")
  assert "is not a directory" in refused(capsys, "pretrain", workdir)


@pytest.mark.parametrize("how", ["all", "one"])
def test_an_optimiser_state_without_digests_is_set_aside(workdir, how):
  def change(value):
    leaves = value["leaves"]
    if how == "all":
      del leaves["opt_state"]
    else:
      del leaves["opt_state"][min(leaves["opt_state"])]

  signed(workdir / "checkpoints/16/metadata/metadata", change)
  notes = []
  progress = Telling(lambda name, done, of, text: notes.append(text))
  pretrain.train(config_of("pretrain"), workdir, progress=progress)
  [line] = [note for note in notes if "it is set aside" in note]
  assert "does not match its digest" in line
  assert "going on from step 12" in notes


@pytest.mark.parametrize("size", [0, -5, 10])
def test_too_small_a_vocabulary_is_named_as_it_is_typed(tmp_path, capsys, size):
  said = refused(
    capsys, "pretrain", tmp_path / "x", f"--config.data.vocab_size={size}"
  )
  assert "config.data.vocab_size must be at least 257" in said
  assert "model.vocab_size" not in said


def test_a_file_in_the_place_of_the_merge_stops_a_search_first(workdir, capsys):
  place = workdir / "search/pair/merged"
  place.parent.mkdir(parents=True)
  place.write_text("x")
  assert f"{place}: it is a file" in refused(capsys, "search", workdir)


@pytest.mark.parametrize("name", ["report.html", "results.json"])
def test_a_pipe_in_the_report_is_not_waited_for(workdir, capsys, name):
  (workdir / REPORT).mkdir(parents=True)
  os.mkfifo(workdir / REPORT / name)
  assert name in refused(capsys, "search", workdir)


def test_a_journal_of_nul_bytes_is_refused_by_its_line(workdir, capsys):
  journal = workdir / "search/pair/study.journal"
  journal.parent.mkdir(parents=True)
  first = {"op_code": 0, "worker_id": "a", "study_name": "x", "directions": [1]}
  journal.write_bytes(json.dumps(first).encode() + b"\n" + b"\0" * 30 + b"\n")
  said = refused(capsys, "search", workdir)
  assert "line 2: it is no JSON" in said


def test_a_study_with_trials_and_no_purpose_is_refused_at_once():
  study = optuna.create_study()
  check_identity(study, {"seed": 0}, {}, writes=False)
  study.enqueue_trial({})
  with pytest.raises(InputError, match="not made by this program"):
    check_identity(study, {"seed": 0}, {}, writes=False)


@pytest.mark.parametrize("name", ["evaluation.json"])
def test_a_pipe_in_an_evaluation_is_not_waited_for(workdir, capsys, name):
  output = workdir.parent / "scores"
  output.mkdir()
  os.mkfifo(output / name)
  said = refused(capsys, "evaluate", workdir, f"--output={output}")
  assert "not an earlier evaluation" in said


def test_a_directory_that_is_no_checkpoint_is_not_searched(workdir, capsys):
  os.mkfifo(workdir.parent / "pipe")
  said = refused(
    capsys, "pretrain", workdir.parent / "new", f"--init_from={workdir.parent}"
  )
  assert "is not a whole checkpoint" in said
  assert "not a file" not in said
