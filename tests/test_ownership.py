"""What is not ours is not replaced, written in, or put in the way of a run."""

import json
import os
import shutil

import pytest

from jaxmerge import convert, evaluate, locks, merge, search
from jaxmerge.checkpoints.models import load_model, save_model
from jaxmerge.checkpoints.outputs import check_output, check_place
from jaxmerge.errors import InputError
from jaxmerge.evaluation import task_scores
from jaxmerge.formats.records.metadata import read_metadata
from tests.helpers import (
  REPORT,
  Telling,
  config_of,
  contents,
  merge_into,
  quiet,
)

AUTO_MAP = {"AutoModel": "modeling_x.Model", "AutoTokenizer": ["tok_x.T", None]}


@pytest.fixture(scope="module")
def made(tiny_run, tmp_path_factory):
  """A merged step directory, one of parameters, and exports of all forms."""
  folder = tmp_path_factory.mktemp("made")
  merge_into(folder / "merged", tiny_run)
  model = load_model(tiny_run / "checkpoints/8")
  save_model(model, folder / "params")
  save_model(model, folder / "plain", format="hf")
  save_model(model, folder / "shards", format="hf", max_shard_bytes=50_000)
  convert.convert(f"{tiny_run}@8", folder / "exported", "hf")
  code = folder / "code"
  shutil.copytree(folder / "exported", code)
  config = json.loads((code / "config.json").read_text())
  config["auto_map"] = AUTO_MAP
  (code / "config.json").write_text(json.dumps(config))
  (code / "modeling_x.py").write_text("from .parts import P\n")
  (code / "parts.py").write_text("from . import more\n")
  (code / "more.py").touch()
  (code / "tok_x.py").touch()
  (folder / "empty").mkdir()
  return folder


FORMS = ["merged", "params", "plain", "shards", "exported", "code", "empty"]


@pytest.mark.parametrize("form", FORMS)
def test_what_we_have_written_may_be_replaced(made, form):
  check_output(made / form, overwrite=True)
  with pytest.raises(InputError, match="exists; use --overwrite"):
    check_output(made / form, overwrite=False)


_ADDED = {
  "notes": lambda p: (p / "notes.md").write_text("mine"),
  "hidden": lambda p: (p / ".env").write_text("TOKEN=1"),
  "git": lambda p: (p / ".git/objects").mkdir(parents=True),
  "ignored": lambda p: (p / ".gitignore").touch(),
  "folder": lambda p: (
    (p / "params/data").mkdir(parents=True),
    (p / "params/data/thesis.txt").write_text("mine"),
  ),
  "code": lambda p: (p / "train.py").write_text("mine"),
  "link": lambda p: (p / "link").symlink_to("/etc/hosts"),
  "known name as a link": lambda p: (p / "tokenizer.model").symlink_to("/etc"),
  "fifo": lambda p: os.mkfifo(p / "vocab.txt"),
  "a fifo that would be read": lambda p: (
    (p / "README.md").unlink(missing_ok=True),
    os.mkfifo(p / "README.md"),
  ),
  "evaluation": lambda p: (p / "evaluation.json").write_text("{}"),
  "weights": lambda p: (p / "adapter.safetensors").write_bytes(b"1"),
}


@pytest.mark.parametrize("form", FORMS[:-1])
@pytest.mark.parametrize("added", _ADDED)
def test_one_file_more_stops_it(made, tmp_path, form, added):
  path = tmp_path / "out"
  shutil.copytree(made / form, path)
  _ADDED[added](path)
  if added == "git":
    (path / ".git/HEAD").touch()
  before = contents(path)
  with pytest.raises(InputError, match="is not a checkpoint, so .*it holds '"):
    check_output(path, overwrite=True)
  assert contents(path) == before


def web_project(path):
  (path / "config.json").write_text('{"port": 8080}')
  (path / "README.md").write_text("# My site")


def model_type_alone(path):
  (path / "config.json").write_text('{"model_type": "llama"}')
  (path / "README.md").write_text("# My site")


def python_project(path):
  (path / "config.json").write_text(
    json.dumps({"model_type": "x", "auto_map": AUTO_MAP})
  )
  for name in ("modeling_x.py", "tok_x.py", "setup.py", "README.md"):
    (path / name).write_text("mine")


def only_named_code(path):
  python_project(path)
  (path / "setup.py").unlink()
  (path / "README.md").unlink()


def thesis(path):
  (path / "metadata").mkdir()
  (path / "metadata/thesis.txt").write_text("mine")


def named_like_metadata(path):
  (path / "metadata").mkdir()
  (path / "metadata/metadata").write_text('{"title": "mine"}')


def names_of_a_step(path):
  (path / "params").mkdir()
  (path / "params/thesis.txt").write_text("mine")
  (path / "_CHECKPOINT_METADATA").touch()


def no_weights(path):
  (path / "config.json").write_text('{"model_type": "llama"}')
  (path / "model.safetensors").write_text("not a tensor in it")


def deep_config(path):
  (path / "config.json").write_text('{"a":' * 100_000)


def list_config(path):
  (path / "config.json").write_text("[1]")


def config_folder(path):
  (path / "config.json").mkdir()


@pytest.mark.parametrize(
  "make",
  [
    web_project,
    model_type_alone,
    python_project,
    only_named_code,
    thesis,
    named_like_metadata,
    names_of_a_step,
    no_weights,
    deep_config,
    list_config,
    config_folder,
    lambda path: (path / "a.txt").touch(),
    lambda path: (path / ".git").mkdir(),
    lambda path: (path.rmdir(), path.write_text("mine")),
    lambda path: (path.rmdir(), os.mkfifo(path)),
  ],
)
def test_what_is_no_checkpoint_is_not_replaced(tiny_run, tmp_path, make):
  path = tmp_path / "out"
  path.mkdir()
  make(path)
  before = contents(tmp_path)
  with pytest.raises(InputError, match="is not a checkpoint, so --overwrite"):
    merge_into(path, tiny_run, overwrite=True)
  assert contents(tmp_path) == before


def damage(path, form):
  if form == "merged":
    file = path / "metadata/metadata"
    value = json.loads(file.read_text())
    value["step"] += 1
    file.write_text(json.dumps(value))
  elif form == "exported":
    file = path / "jaxmerge.json"
    file.write_text('{"format": 1}')
  elif form == "plain":
    (path / "README.md").write_text("# What I did\nWritten by jaxmerge 1\n")
  else:
    (path / "config.json").write_text('{"port": 8080}')


@pytest.mark.parametrize("form", ["merged", "exported", "plain", "shards"])
def test_a_marker_with_other_contents_is_none(made, tmp_path, form):
  path = tmp_path / "out"
  shutil.copytree(made / form, path)
  damage(path, form)
  with pytest.raises(InputError, match="is not a checkpoint"):
    check_output(path, overwrite=True)


def test_what_comes_into_an_output_meanwhile_is_not_lost(tiny_run, tmp_path):
  path = tmp_path / "out"
  merge_into(path, tiny_run)

  def add(stage, done, total, note):
    (path / "notes.md").write_text("mine")

  with pytest.raises(InputError, match=r"it holds 'notes\.md'"):
    merge.merge(
      config_of("merge", "uniform"),
      [f"{tiny_run}@4", f"{tiny_run}@8"],
      path,
      overwrite=True,
      progress=Telling(add),
    )
  assert (path / "notes.md").read_text() == "mine"
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_trained_step_is_not_replaced(tiny_run, tmp_path):
  """Its optimiser state cannot be made again by a merge."""
  shutil.copytree(tiny_run / "checkpoints/8", tmp_path / "copy")
  with pytest.raises(InputError, match="it holds 'opt_state/"):
    check_output(tmp_path / "copy", overwrite=True)


# The guard of all verbs.


@pytest.fixture
def run(tiny_run, tmp_path):
  run = tmp_path / "runs/a"
  shutil.copytree(tiny_run, run)
  return run


def places(run, tmp_path):
  (tmp_path / "link").symlink_to(run / "checkpoints")
  (tmp_path / "step").symlink_to(run / "checkpoints/8")
  (tmp_path / "deep").symlink_to("link")
  return [
    run / "checkpoints/99",
    run / "checkpoints/8/x",
    run / "checkpoints/8/params/x/y",
    tmp_path / "link/99",
    tmp_path / "deep/99",
    tmp_path / "step/x",
    run / "../a/checkpoints/99",
    run / "report/../checkpoints/./99",
  ]


def test_no_verb_writes_among_the_checkpoints_of_a_run(run, tmp_path):
  outputs = places(run, tmp_path)
  model = load_model(run / "checkpoints/8")
  before = contents(tmp_path)
  for output in outputs:
    for write in (
      lambda o: merge_into(o, run),
      lambda o: merge_into(o, run, overwrite=True),
      lambda o: convert.convert(f"{run}@8", o, "hf"),
      lambda o: convert.convert(f"{run}@8", o, "orbax"),
      lambda o: save_model(model, o),
      lambda o: save_model(model, o, format="hf"),
      lambda o: evaluate.evaluate(
        config_of("evaluate"), [f"{run}@8"], output=o, progress=quiet
      ),
    ):
      with pytest.raises(InputError, match="lies among the checkpoints"):
        write(output)
  assert contents(tmp_path) == before


def test_beside_the_checkpoints_is_not_among_them(run, tmp_path):
  places(run, tmp_path)
  for output in (
    run / "merged",
    run / "checkpoints/../merged",
    tmp_path / "link/../merged",
    tmp_path / "checkpoints/600",
  ):
    check_output(output, overwrite=False, inputs=[run / "checkpoints/8"])


def test_checkpoints_that_are_kept_elsewhere_are_still_the_runs(run, tmp_path):
  """<workdir>/checkpoints may itself be a link to a larger disk."""
  (run / "checkpoints").rename(tmp_path / "disk")
  (run / "checkpoints").symlink_to(tmp_path / "disk")
  (tmp_path / "again").symlink_to(run / "checkpoints")
  for output in (run / "checkpoints/99", tmp_path / "again/99"):
    with pytest.raises(InputError, match="among the checkpoints of a run"):
      check_output(output, overwrite=True)


def test_a_search_writes_nothing_among_checkpoints(run, tmp_path):
  (run / "report").symlink_to(run / "checkpoints")
  config = config_of("search", report_dir="report")
  with pytest.raises(InputError, match="lies among the checkpoints"):
    search.search(config, run, progress=quiet)
  (run / "report").unlink()
  (run / "search").symlink_to(run / "checkpoints/8")
  before = contents(tmp_path)
  with pytest.raises(InputError, match="lies among the checkpoints"):
    search.search(config_of("search"), run, progress=quiet)
  (run / "search").unlink()
  config = config_of("search")
  config.storage = str(run / "checkpoints/study.journal")
  with pytest.raises(InputError, match="lies among the checkpoints"):
    search.search(config, run, progress=quiet)
  assert not (run / "search").exists()
  assert len(contents(tmp_path)) == len(before) - 1


def test_a_search_looks_at_all_that_it_would_write_before_it_begins(run):
  merged = run / "search/pair/merged/12"
  merged.mkdir(parents=True)
  (merged / "notes.txt").write_text("mine")
  (run / REPORT).mkdir()
  (run / f"{REPORT}/results.json").write_text("[1]")
  config = config_of("search")
  config.storage = str(run / "run.json")
  before = contents(run)
  with pytest.raises(InputError) as told:
    search.search(config, run, progress=quiet)
  assert len(told.value.problems) == 3
  for word in ("merged/12 is not a", "results.json is not", "holds no study"):
    assert word in str(told.value)
  assert contents(run) == before


@pytest.mark.parametrize("below", ["x", "params/x"])
def test_nothing_is_written_in_an_input(made, tmp_path, below):
  first, second = tmp_path / "a", tmp_path / "b"
  for path in (first, second):
    shutil.copytree(made / "merged", path)
  (tmp_path / "link").symlink_to("b")
  before = contents(tmp_path)
  for output in (first / below, tmp_path / "link" / below):
    with pytest.raises(InputError, match="lies in the"):
      merge.merge(
        config_of("merge", "uniform"),
        [str(first), str(second)],
        output,
        overwrite=True,
        progress=quiet,
      )
    with pytest.raises(InputError, match="lies in the"):
      convert.convert(str(second), tmp_path / "link" / below, "hf")
    with pytest.raises(InputError, match="lies in the"):
      evaluate.evaluate(
        config_of("evaluate"),
        [str(first), str(second)],
        output=output,
        progress=quiet,
      )
  assert contents(tmp_path) == before


def test_what_holds_an_input_is_no_output(run, tmp_path):
  for output in (run, run.parent, tmp_path):
    with pytest.raises(InputError, match="holds the input"):
      merge_into(output, run, overwrite=True)
  check_place(run / "evaluation.json", inputs=[run / "checkpoints/8"])


def test_what_holds_a_base_is_no_output(made, tmp_path):
  base = tmp_path / "out/base"
  shutil.copytree(made / "merged", base)
  config = config_of("merge", "uniform")
  config.method = "task_arithmetic"
  config.base = str(base)
  with pytest.raises(InputError, match="holds the input"):
    merge.merge(
      config,
      [str(made / "merged"), str(made / "params")],
      base.parent,
      overwrite=True,
      allow_unrelated=True,
      progress=quiet,
    )


# Links.


def test_what_a_link_leads_to_is_replaced(tiny_run, tmp_path):
  (tmp_path / "disk").mkdir()
  (tmp_path / "link").symlink_to("disk/out")
  merge_into(tmp_path / "disk/out", tiny_run)
  with pytest.raises(InputError, match="exists; use --overwrite"):
    merge_into(tmp_path / "link", tiny_run)
  first = (tmp_path / "disk/out/metadata/metadata").stat().st_ino
  merge_into(tmp_path / "link", tiny_run, overwrite=True)
  assert os.readlink(tmp_path / "link") == "disk/out"
  assert (tmp_path / "disk/out/metadata/metadata").stat().st_ino != first
  assert read_metadata(tmp_path / "link").kind == "merged"
  assert sorted(p.name for p in tmp_path.rglob("*") if p.name[0] == ".") == []
  assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "link"]


@pytest.mark.parametrize("target", ["nowhere/out", "link"])
def test_a_link_that_leads_nowhere_is_no_output(tiny_run, tmp_path, target):
  (tmp_path / "link").symlink_to(target)
  for output in (tmp_path / "link", tmp_path / "link/below"):
    with pytest.raises(InputError, match=f"is a link .*{target}|itself"):
      merge_into(output, tiny_run, overwrite=True)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["link"]


# Evaluations.


def test_an_evaluation_is_checked_before_it_is_scored(
  tiny_run, tmp_path, monkeypatch
):
  def scores(*args):
    raise AssertionError("scored")

  monkeypatch.setattr(task_scores, "scores", scores)
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/evaluation.json").write_text('{"grade": "A"}')
  (tmp_path / "file").touch()
  (tmp_path / "folder/evaluation.json").mkdir(parents=True)
  before = contents(tmp_path)
  for name, says in (
    ("mine", "is not an earlier evaluation"),
    ("folder", "is not an earlier evaluation"),
    ("file", "it is a file"),
    ("file/below", "it is a file"),
  ):
    with pytest.raises(InputError, match=says):
      evaluate.evaluate(
        config_of("evaluate"),
        [f"{tiny_run}@8"],
        output=tmp_path / name,
        progress=quiet,
      )
  assert contents(tmp_path) == before


def test_an_evaluation_replaces_an_earlier_one_alone(tiny_run, tmp_path):
  (tmp_path / "e").mkdir()
  (tmp_path / "e/notes.md").write_text("mine")
  for _ in range(2):
    evaluate.evaluate(
      config_of("evaluate"),
      [f"{tiny_run}@8"],
      output=tmp_path / "e",
      progress=quiet,
    )
  assert sorted(p.name for p in tmp_path.rglob("*")) == [
    "e",
    "evaluation.json",
    "evaluation.npz",
    "notes.md",
  ]


# Locks.


def test_an_output_in_use_is_left_to_its_process(tiny_run, made, tmp_path):
  output = tmp_path / "out"
  writers = (
    lambda: merge_into(output, tiny_run),
    lambda: convert.convert(f"{tiny_run}@8", output, "hf"),
    lambda: evaluate.evaluate(
      config_of("evaluate"), [f"{tiny_run}@8"], output=output, progress=quiet
    ),
  )
  with locks.exclusive(output, "the output"):
    for write in writers:
      with pytest.raises(InputError, match=f"in use by process {os.getpid()}"):
        write()
    merge_into(output, tiny_run, dry_run=True)
    assert not output.exists()
  merge_into(output, tiny_run)
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_directory_that_is_there_is_locked_inside(tiny_run, tmp_path):
  """It may be all that can be written to, as where it is a mounted disk."""
  (tmp_path / "scores").mkdir()
  with (
    locks.exclusive(tmp_path / "scores/evaluation.json", "the output"),
    pytest.raises(InputError, match=r"scores is in use by process"),
  ):
    evaluate.evaluate(
      config_of("evaluate"),
      [f"{tiny_run}@8"],
      output=tmp_path / "scores",
      progress=quiet,
    )
  assert not list((tmp_path / "scores").iterdir())


def test_a_dry_run_locks_and_makes_nothing(tiny_run, tmp_path):
  merge_into(tmp_path / "a/b/out", tiny_run, dry_run=True)
  assert not list(tmp_path.iterdir())
