"""What is killed half-way, made by an older version, or lies far away."""

import json
import sqlite3

import numpy as np
import optuna
import pytest
from safetensors.numpy import save_file

from jaxmerge import files
from jaxmerge.bayesopt.study.storage import address_problems
from jaxmerge.bayesopt.study.study import find_study, open_study
from jaxmerge.checkpoints import outputs
from jaxmerge.checkpoints.outputs import why_not_a_checkpoint
from jaxmerge.cli import command_line
from jaxmerge.data.documents import form_of
from jaxmerge.data.tokenizers.hugging_face import train_tokenizer
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.huggingface.tensors import write_beside
from jaxmerge.parallel import distributed
from jaxmerge.redaction import without_secrets
from jaxmerge.reporting.page import check_report_directory
from jaxmerge.training import run


def test_a_replacement_interrupted_between_its_renames_is_undone(
  tmp_path, monkeypatch
):
  place = tmp_path / "out[1]"
  place.mkdir()
  (place / "kept").write_text("the earlier one")
  rename = type(files.absolute(place)).rename
  calls = []

  def interrupted(self, target):
    calls.append(self)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return rename(self, target)

  def replace():
    with files.replace_directory(place) as temporary:
      temporary.mkdir()
      monkeypatch.setattr(type(temporary), "rename", interrupted)

  with pytest.raises(KeyboardInterrupt):
    replace()
  assert len(calls) == 3
  assert [p.name for p in tmp_path.iterdir()] == ["out[1]"]
  assert (place / "kept").read_text() == "the earlier one"


def test_a_report_killed_between_its_files_can_be_written_again(
  tmp_path, monkeypatch
):
  page = '<meta name="generator" content="jaxmerge">'
  replace = type(files.absolute(tmp_path)).replace
  moved = []

  def killed(self, target):
    moved.append(self.name)
    if len(moved) == 2:
      raise KeyboardInterrupt
    return replace(self, target)

  def write():
    with files.files_of_directory(tmp_path, first="report.html") as folder:
      for name in ("baselines.png", "report.html", "results.json"):
        (folder / name).write_text(page)
      monkeypatch.setattr(type(folder), "replace", killed)

  with pytest.raises(KeyboardInterrupt):
    write()
  assert moved == ["report.html", "baselines.png"]
  check_report_directory(tmp_path, "pair")


def _optuna_file(tmp_path):
  url = f"sqlite:///{tmp_path}/study.db"
  open_study(
    url,
    "pair",
    sampler=optuna.samplers.RandomSampler(),
    identity={"seed": 0},
    num_trials=2,
  )
  return url, tmp_path / "study.db"


def _change(path, statement):
  connection = sqlite3.connect(path)
  connection.execute(statement)
  connection.commit()
  connection.close()


def test_a_database_of_another_version_is_a_message(tmp_path):
  url, path = _optuna_file(tmp_path)
  _change(path, "UPDATE alembic_version SET version_num = 'v1.3.0.a'")
  with pytest.raises(InputError, match="cannot open the study storage"):
    find_study(url, "pair", identity={"seed": 0})


def test_looking_for_a_study_makes_no_table(tmp_path):
  url, path = _optuna_file(tmp_path)
  _change(path, "DROP TABLE trial_heartbeats")
  before = path.read_bytes()
  assert find_study(url, "pair", identity={"seed": 0}) is not None
  assert path.read_bytes() == before


@pytest.mark.parametrize("form", ["{}/study.journal", "sqlite:///{}/study.db"])
def test_a_study_in_the_home_directory_is_found(tmp_path, monkeypatch, form):
  monkeypatch.setenv("HOME", str(tmp_path))
  open_study(
    form.format(tmp_path),
    "pair",
    sampler=optuna.samplers.RandomSampler(),
    identity={"seed": 0, "seq_len": 8},
    num_trials=2,
  )
  found = find_study(
    form.format("~"), "pair", identity={"seed": 0, "seq_len": 8}
  )
  assert found is not None
  assert len(found.trials) == 2
  for other in ({"seed": 1, "seq_len": 8}, {"seed": 0}):
    with pytest.raises(InputError, match="seed|seq_len"):
      find_study(form.format("~"), "pair", identity=other)


def test_what_the_first_process_raises_is_raised(monkeypatch):
  """And told to the others, who would wait for ever."""
  told = []
  monkeypatch.setattr(distributed, "is_job", lambda: True)
  monkeypatch.setattr(
    distributed, "broadcast_text", lambda text="": told.append(text)
  )

  def full():
    raise OSError("no space left")

  with pytest.raises(OSError, match="no space left"):
    distributed.on_first_process(full)
  assert distributed.on_first_process(lambda: 7) == 7
  failed, done = told
  assert done == ""
  monkeypatch.setattr(distributed, "is_first_process", lambda: False)
  monkeypatch.setattr(distributed, "broadcast_text", lambda: failed)
  with pytest.raises(InputError, match="process 0 of the job has ended"):
    distributed.on_first_process(full)


@pytest.mark.parametrize("url", ["gs://b/runs/a", "s3://b"])
def test_a_bucket_has_nothing_above_it(url):
  places = [str(place) for place in outputs._places(outputs.absolute(url))]
  assert places[0] == url
  assert all(place.startswith(f"{url[:2]}://b") for place in places)


def test_an_output_of_ours_with_all_of_its_code_may_be_replaced(tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  save_file({"a": np.ones((2, 2), np.float32)}, out / "model.safetensors")
  config = {"model_type": "x", "auto_map": {"AutoModel": "modeling.Model"}}
  texts = {
    "config.json": json.dumps(config),
    "modeling.py": "from . import other, helper",
    "helper.py": "",
    "other.py": "",
  }
  write_beside(
    out, texts, "", Metadata("imported", {}, model=config), is_known=False
  )
  assert why_not_a_checkpoint(out) == ""
  (out / "notes.txt").write_text("mine")
  assert "notes.txt" in why_not_a_checkpoint(out)
  (out / "notes.txt").unlink()
  (out / "jaxmerge.json").unlink()
  assert "py" in why_not_a_checkpoint(out)


def test_files_that_were_skipped_before_change_no_corpus(tmp_path):
  text = tmp_path / "a.txt"
  for content, form in (
    ("é".encode("utf-16"), ""),  # with its mark: it was never UTF-8
    (b"\xe9\0a\0b\0c\0", ""),
    ("abcd".encode("utf-16-le"), "UTF-16"),  # was read as text with zeros
    ("abcd".encode("utf-8-sig"), "byte-order mark"),
    (b"abcd", ""),
  ):
    text.write_bytes(content)
    assert form_of(str(text)) == form


@pytest.mark.parametrize(
  "text",
  [
    "runs/pass=1/a@8,runs/pass=1/a@12",
    "--config.key=3 --search_key=5",
    "gs://bucket/runs/sig=2/a@600",
  ],
)
def test_settings_in_paths_are_no_secrets(text):
  assert without_secrets(text) == text


def test_a_long_address_of_a_database_is_no_path_and_shows_no_password():
  secret = "hunter2" * 60
  address = f"postgresql://user:{secret}@host/db"
  assert not command_line.text_problems("config.storage", [address])
  [*_, problem] = command_line.text_problems("workdir", [address])
  assert "hunter2" not in "".join(
    command_line.text_problems("workdir", [address])
  )
  assert problem


def test_a_run_of_before_is_told_that_its_validation_text_changes(tmp_path):
  parts = run.known_parts({"seed": 0}, content="text", parent="")
  now = run.identity(parts, corpus="corpus", vocabulary=300)
  tokenizer = train_tokenizer(["a text"], vocab_size=257)
  run.claim(tmp_path, now, tokenizer)
  assert list(run.notes_on_validation(tmp_path)) == []
  before = {k: v for k, v in now.items() if k != "held_out"}
  (tmp_path / "run.json").write_text(json.dumps(before))
  run.claim(tmp_path, now, tokenizer)
  [note] = run.notes_on_validation(tmp_path)
  assert "heads of documents" in note


@pytest.mark.parametrize(
  "address", ["sqlite://", "sqlite:///", "sqlite:///:memory:"]
)
def test_a_study_in_memory_would_be_lost(address):
  [problem] = address_problems(address)
  assert "would be lost" in problem
  assert not address_problems("sqlite:////tmp/study.db")
