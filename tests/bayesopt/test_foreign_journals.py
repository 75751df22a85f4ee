"""What is no study is never cut, extended or written beside; a change shows."""

import json
import os
import sqlite3

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from jaxmerge.bayesopt.study.object_journal import open_object_journal
from jaxmerge.bayesopt.study.records import CHECKSUM, sealed
from jaxmerge.bayesopt.study.storage import check_storage, open_storage
from jaxmerge.errors import InputError
from tests.bayesopt.studies import search

_RECORD = b'{"op_code":0,"worker_id":"a-1","study_name":"s","directions":[1]}\n'


def seen(folder):
  """Everything below a folder: kinds, contents and times of change."""
  found = {}
  for parent, folders, files in os.walk(folder):
    for name in [*folders, *files]:
      path = os.path.join(parent, name)
      stat = os.lstat(path)
      content = b""
      if os.path.isfile(path) and not os.path.islink(path):
        with open(path, "rb") as file:
          content = file.read()
      found[path] = (stat.st_mode, stat.st_size, stat.st_mtime_ns, content)
  return found


def database(path, *statements):
  connection = sqlite3.connect(path)
  for statement in statements:
    connection.execute(statement)
  connection.commit()
  connection.close()


_FOREIGN = {
  "one line of JSON": b'{"weights": [0.1, 0.2], "bias": 0.3}',
  "JSON with a newline": b'{"weights": [0.1, 0.2], "bias": 0.3}\n',
  "JSON over lines": b'{\n  "weights": 1\n}\n',
  "JSON over lines, no end": b'{\n  "weights": 1\n}',
  "metrics": b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.9}\n',
  "a list": b"[1, 2, 3]",
  "text": b"dear diary,\nthe loss is low",
  "one word": b"thesis",
  "a newline": b"\n",
  "blanks": b"   ",
  "a number": b"0",
  "zeros": bytes(5000),
  "binary": bytes(range(256)) * 40,
  "a brace and binary": b"{" + bytes(range(11, 256)) * 40,
  "one long line": b'{"a": "' + b"x" * 2_000_000 + b'"}',
  "deep JSON": b"[" * 100_000 + b"\n",
  "deep objects": b'{"a":' * 100_000 + b"\n",
  "other op codes": b'{"op_code":"create","worker_id":"a"}\n',
  "no worker": b'{"op_code":0,"study_name":"s","directions":[1]}\n',
  "op code true": b'{"op_code":true,"worker_id":"a"}\n',
  "another start": b'{"op_code":0,"user":',
  "a later record": b'{"op_code":4,"worker_id":"a","study_id":0}\n',
  "UTF-16": '{"op_code":0}'.encode("utf-16"),
}


@pytest.mark.parametrize("kind", _FOREIGN)
@pytest.mark.parametrize("through", ["name", "link"])
def test_a_file_that_is_no_journal_stays_as_it_is(tmp_path, kind, through):
  path = tmp_path / "mine.json"
  path.write_bytes(_FOREIGN[kind])
  if through == "link":
    (tmp_path / "link").symlink_to(path)
    path = tmp_path / "link"
  before = seen(tmp_path)
  for look in (check_storage, open_storage):
    with pytest.raises(InputError, match="holds no study|damaged at line 1"):
      look(path)
  assert seen(tmp_path) == before


@pytest.mark.parametrize(
  "kind", ["folder", "fifo", "device", "dangling", "loop", "below a file"]
)
@pytest.mark.parametrize("form", ["{}", "sqlite:///{}"])
def test_what_is_no_file_stays_as_it_is(tmp_path, kind, form):
  path = tmp_path / "study"
  if kind == "folder":
    path.mkdir()
  elif kind == "fifo":
    os.mkfifo(path)
  elif kind == "device":
    path.symlink_to("/dev/full")
  elif kind == "dangling":
    path.symlink_to(tmp_path / "not there")
  elif kind == "loop":
    path.symlink_to(path)
  else:
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file/study"
  before = seen(tmp_path)
  for look in (check_storage, open_storage):
    with pytest.raises(InputError, match="study"):
      look(form.format(path))
  assert seen(tmp_path) == before


def test_a_database_named_as_a_journal_says_how_to_name_it(tmp_path):
  path = tmp_path / "app.db"
  database(path, "CREATE TABLE users (name TEXT)")
  before = seen(tmp_path)
  with pytest.raises(InputError, match=f"sqlite:///{path}"):
    open_storage(path)
  assert seen(tmp_path) == before


@pytest.mark.parametrize(
  ("statements", "says"),
  [
    (["CREATE TABLE users (name TEXT)"], r"another program \(tables users\)"),
    # Of Optuna's names, but not its tables.
    (["CREATE TABLE studies (id INT)", "CREATE TABLE trials (x)"], "another p"),
    (["PRAGMA journal_mode=WAL", "CREATE TABLE users (name TEXT)"], "another"),
  ],
)
def test_a_database_of_another_program_stays_as_it_is(
  tmp_path, statements, says
):
  path = tmp_path / "app.db"
  database(path, *statements)
  before = seen(tmp_path)
  for look in (check_storage, open_storage):
    for url in (f"sqlite:///{path}", f"sqlite:///file:{path}?uri=true"):
      with pytest.raises(InputError, match=says):
        look(url)
  assert seen(tmp_path) == before


@pytest.mark.parametrize("content", [b"thesis", b"SQLite format", b"{}\n"])
def test_a_file_that_is_no_database_stays_as_it_is(tmp_path, content):
  path = tmp_path / "mine.txt"
  path.write_bytes(content)
  before = seen(tmp_path)
  with pytest.raises(InputError, match="is no SQLite database"):
    open_storage(f"sqlite:///{path}")
  assert seen(tmp_path) == before


def test_a_broken_database_stays_as_it_is(tmp_path):
  path = tmp_path / "mine.db"
  path.write_bytes(b"SQLite format 3\0" + b"\x07" * 5000)
  before = seen(tmp_path)
  with pytest.raises(InputError, match="cannot be read as a SQLite"):
    open_storage(f"sqlite:///{path}")
  assert seen(tmp_path) == before


def test_a_scheme_with_one_slash_is_no_file_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for address in ("sqlite:/study.db", "postgresql:/u:secret@h/db", "gs:/b/x"):
    with pytest.raises(InputError, match="is no address; write"):
      open_storage(address)
  assert not list(tmp_path.iterdir())


def test_studies_are_opened_where_they_are_and_made_where_nothing_is(tmp_path):
  (tmp_path / "empty").touch()
  database(tmp_path / "tables.db")
  (tmp_path / "link").symlink_to("empty")
  for storage in (
    tmp_path / "new/folder/study",
    tmp_path / "link",
    f"sqlite:///{tmp_path}/tables.db",
    f"sqlite:///{tmp_path}/new.db",
  ):
    for _ in range(2):
      assert len(search(storage).trials) == 2
    assert len(search(storage, "another").trials) == 2
    assert len(search(storage).trials) == 2
  assert (tmp_path / "link").is_symlink()


def test_a_first_line_that_a_searcher_died_in_is_mended(tmp_path):
  for end in (1, 20, 30, len(_RECORD) - 1):
    path = tmp_path / str(end)
    path.write_bytes(_RECORD[:end])
    assert len(search(path).trials) == 2
    torn = tmp_path / f"{end}.torn"
    assert torn.read_bytes() == _RECORD[:end] + b"\n"


def test_a_torn_end_is_not_mended_before_the_rest_was_looked_at(tmp_path):
  path = tmp_path / "journal"
  path.write_bytes(_RECORD + b"not a record\n" + b'{"op_code":8,"wor')
  before = seen(tmp_path)
  with pytest.raises(InputError, match="damaged at line 2: it is no JSON"):
    open_storage(path)
  assert seen(tmp_path).keys() == before.keys()
  assert path.read_bytes() == before[str(path)][-1]


def changed_loss(path):
  """Makes the loss of a trial in a journal better; the line's number."""
  lines = path.read_bytes().splitlines(keepends=True)
  for i, line in enumerate(lines):
    record = json.loads(line)
    if record["op_code"] == 6 and record["values"]:
      record["values"] = [record["values"][0] / 2]
      lines[i] = json.dumps(record).encode() + b"\n"
      path.write_bytes(b"".join(lines))
      return i + 1
  raise AssertionError


def test_a_changed_loss_is_refused(tmp_path):
  path = tmp_path / "journal"
  search(path)
  number = changed_loss(path)
  changed = path.read_bytes()
  says = f"{path} is damaged at line {number}: it was changed"
  with pytest.raises(InputError, match=says):
    open_storage(path)
  assert path.read_bytes() == changed


def test_a_searcher_that_follows_refuses_a_changed_line(tmp_path):
  path = tmp_path / "journal"
  study = search(path)
  assert len(study.trials) == 2
  record = sealed(
    {"op_code": 2, "worker_id": "b", "study_id": 0, "user_attr": {"a": 1}}
  )
  with open(path, "ab") as journal:
    journal.write(json.dumps(record).encode() + b"\n")
  assert study.user_attrs["a"] == 1
  number = path.read_bytes().count(b"\n") + 1
  with open(path, "ab") as journal:
    record["user_attr"] = {"a": 2}
    journal.write(json.dumps(record).encode() + b"\n")
  with pytest.raises(InputError, match=f"line {number}: it was changed"):
    study.user_attrs  # noqa: B018


def test_a_searcher_that_follows_says_what_is_no_record(tmp_path):
  path = tmp_path / "journal"
  study = search(path)
  number = path.read_bytes().count(b"\n") + 1
  with open(path, "ab") as journal:
    journal.write(b"a note\n" + _RECORD)
  with pytest.raises(InputError, match=f"damaged at line {number}: it is no J"):
    study.trials  # noqa: B018


def test_records_of_others_are_taken_and_others_take_ours(tmp_path):
  """Old journals and dashboards write none; plain Optuna reads ours."""
  path = tmp_path / "journal"
  search(path)
  assert all(CHECKSUM in json.loads(line) for line in path.open())
  plain = optuna.load_study(
    study_name="search",
    storage=JournalStorage(JournalFileBackend(str(path))),
  )
  plain.set_user_attr("note", "seen")
  assert CHECKSUM not in json.loads(path.read_bytes().splitlines()[-1])
  ours = search(path)
  assert ours.user_attrs["note"] == "seen"
  assert [t.params for t in ours.trials] == [t.params for t in plain.trials]
  old = tmp_path / "old"
  records = [json.loads(line) for line in path.open()]
  for record in records:
    record.pop(CHECKSUM, None)
  old.write_text("".join(json.dumps(r) + "\n" for r in records))
  assert [t.value for t in search(old).trials] == [t.value for t in ours.trials]


def test_every_kind_of_record_may_have_one_more_key(tmp_path):
  """What Optuna does with each operation does not depend on it."""
  path = tmp_path / "journal"
  study = optuna.create_study(
    study_name="a", storage=open_storage(path), direction="maximize"
  )
  study.set_user_attr("u", {"deep": [1, None, float("inf")]})
  study.set_metric_names(["loss"])
  study.enqueue_trial({"x": 0.25})
  trial = study.ask()
  trial.suggest_float("x", 0, 1)
  trial.report(0.5, step=3)
  trial.set_user_attr("é", "ü")
  study._storage.set_trial_system_attr(trial._trial_id, "s", [1.5])
  study.tell(trial, 0.1 + 0.2)
  study.add_trial(trial=study.trials[0])
  optuna.create_study(study_name="b", storage=open_storage(path))
  optuna.delete_study(study_name="b", storage=open_storage(path))
  codes = {json.loads(line)["op_code"] for line in path.open()}
  assert codes == set(range(10))
  again = [
    optuna.load_study(study_name="a", storage=storage)
    for storage in (
      open_storage(path),
      JournalStorage(JournalFileBackend(str(path))),
    )
  ]
  for found in again:
    assert found.trials == study.trials
    assert found.user_attrs == study.user_attrs


def test_an_entry_that_was_changed_in_a_store_is_refused(tmp_path):
  url = f"file://{tmp_path}/s"
  search(url)
  assert len(search(url).trials) == 2
  for path in sorted((tmp_path / "s").iterdir()):
    entry = json.loads(path.read_text())
    if entry["log"]["op_code"] == 6 and entry["log"]["values"]:
      entry["log"]["values"] = [0.0]
      path.write_text(json.dumps(entry))
      break
  with pytest.raises(InputError, match=f"{path.name}: it was changed"):
    open_object_journal(url)


@pytest.mark.parametrize(
  ("name", "content", "says"),
  [
    ("000000000000.json", '{"step": 1}', "creates none"),
    ("000000000000.json", "text", "creates none"),
    ("000000000000.json", '{"id": "a", "log": {"op_code": 4}}', "creates none"),
    ("000000000005.json", '{"step": 5}', "but not the first one"),
  ],
)
def test_a_store_with_other_objects_stays_as_it_is(
  tmp_path, name, content, says
):
  (tmp_path / "s").mkdir()
  (tmp_path / "s" / name).write_text(content)
  before = seen(tmp_path)
  with pytest.raises(InputError, match=says):
    open_storage(f"file://{tmp_path}/s")
  assert seen(tmp_path) == before


def test_a_store_address_that_is_a_file_is_refused(tmp_path):
  (tmp_path / "mine").write_text("mine")
  for look in (check_storage, open_storage):
    with pytest.raises(InputError, match="mine is no directory"):
      look(f"file://{tmp_path}/mine")
  assert (tmp_path / "mine").read_text() == "mine"
  assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def _lines(path):
  return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
  "how",
  [
    lambda lines: lines[:4] + lines[5:],
    lambda lines: lines[:4] + [lines[3]] + lines[4:],
    lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]],
    lambda lines: [lines[0], *lines[2:]],
  ],
)
def test_lines_that_are_missing_doubled_or_moved_are_refused(tmp_path, how):
  path = tmp_path / "study.journal"
  storage = open_storage(path)
  study = optuna.create_study(storage=storage, study_name="a")
  for value in (1.0, 2.0, 3.0):
    study.add_trial(optuna.trial.create_trial(value=value))
  study.set_user_attr("x", 1)
  study.set_user_attr("y", 2)
  study.set_user_attr("z", 3)
  whole = _lines(path)
  assert len(whole) > 6
  path.write_bytes(b"".join(how(whole)))
  before = path.read_bytes()
  with pytest.raises(InputError, match="lines are missing or moved"):
    open_storage(path)
  assert path.read_bytes() == before
  path.write_bytes(b"".join(whole))
  assert (
    len(optuna.load_study(study_name="a", storage=open_storage(path)).trials)
    == 3
  )


def test_lines_of_other_programs_among_ours_are_counted(tmp_path):
  path = tmp_path / "study.journal"
  study = optuna.create_study(storage=open_storage(path), study_name="a")
  theirs = optuna.load_study(
    study_name="a",
    storage=JournalStorage(JournalFileBackend(str(path))),
  )
  theirs.set_user_attr("note", "of a dashboard")
  study.set_user_attr("x", 1)
  again = optuna.load_study(study_name="a", storage=open_storage(path))
  assert again.user_attrs == {"note": "of a dashboard", "x": 1}
