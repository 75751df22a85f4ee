"""Passwords and tokens never reach a terminal, a file or a report."""

import shutil

import pytest

from jaxmerge import merge, quickstart, search
from jaxmerge.bayesopt.study.storage import open_storage
from jaxmerge.cli import runner
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.redaction import presentable, printable, without_secrets
from tests.helpers import quiet

HIDDEN = [
  ("postgresql://me:hush@h/db", "postgresql://me:***@h/db"),
  (
    "POSTGRESQL+psycopg2://me:hush@h:5/db",
    "POSTGRESQL+psycopg2://me:***@h:5/db",
  ),
  ("postgresql://me@corp:hush@h/db", "postgresql://me@corp:***@h/db"),
  ("postgresql://dom/me:hush@h/db", "postgresql://dom/me:***@h/db"),
  ("postgresql://me:hu/hush@h/db", "postgresql://me:***@h/db"),
  ("postgresql://me:hu@hush@h/db", "postgresql://me:***@h/db"),
  ("postgresql://me:12/hush@h/db", "postgresql://me:***@h/db"),
  ("postgresql://me:hush?#@h/db", "postgresql://me:***@h/db"),
  ("postgresql://me:%68ush@h/db", "postgresql://me:***@h/db"),
  ("postgresql://me:a hush@h/db", "postgresql://me:***@h/db"),
  (
    "postgresql://h/db?user=me&password=hush",
    "postgresql://h/db?user=me&password=***",
  ),
  ("postgresql://h/db?pass%77ord=hush", "postgresql://h/db?pass%77ord=***"),
  ("s3://KEY:hush@bucket/run@600", "s3://***@bucket/run@600"),
  ("s3://KEY:hu/hush@bucket/run@600", "s3://***@bucket/run@600"),
  ("https://hush@host/x", "https://***@host/x"),
  (
    "https://h/x?X-Amz-Signature=hush&X-Amz-Credential=hush&a=1",
    "https://h/x?X-Amz-Signature=***&X-Amz-Credential=***&a=1",
  ),
  ("https://h/x?AWSAccessKeyId=hush", "https://h/x?AWSAccessKeyId=***"),
  ("https://h/x?sv=3&sig=hush#end", "https://h/x?sv=3&sig=***"),
  ("http://h?u=mysql%3A%2F%2Fme%3Ahush%40h", "http://h?u=***"),
  (
    "first mysql://me:hush@a/b, then (mysql://me:hush@c/d) ends",
    "first mysql://me:***@a/b, then (mysql://me:***@c/d) ends",
  ),
  (
    "--inputs=gs://b/x@4,s3://K:hush@b/y@8",
    "--inputs=gs://b/x@4,s3://***@b/y@8",
  ),
  ("'--config.storage=mysql://me:hush@h/a b'", None),
  (
    "--config.storage=mysql://me:my hush@h/a",
    "--config.storage=mysql://me:***@h/a",
  ),
  ("host=h password=hush token=hush api_key=hush", None),
]
PLAIN = [
  "gs://bucket/run@600",
  "s3://bucket@600",
  "gs://b/x@4,gs://b/y@8",
  "http://host:8080/a@b",
  "postgresql://me@host/db",
  "postgresql://me:***@host/db",
  "sqlite:////tmp/a@b.db",
  "runs/a@600 and --config.seed=3 --config.data.text_feature=text",
  "gs://bucket: permission denied for me@host",
]


@pytest.mark.parametrize(("text", "shown"), HIDDEN)
def test_hidden(text, shown):
  found = without_secrets(text)
  assert "hush" not in found
  assert shown in (None, found)
  assert without_secrets(found) == found


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays(text):
  assert without_secrets(text) == text


def test_what_a_library_quotes_of_a_password():
  address = "postgresql://me:pass@word%21@host/db"
  text = 'could not translate host name "word%21@host", tried pass@word!'
  assert "word" not in without_secrets(text, [address])


def test_characters_that_act():
  text = printable("a\x1b[31m\r\x00\u202eb\udcff\n\tc é 猫")
  assert text == "a\\x1b[31m\\r\\x00\\u202eb\\udcff\n\tc é 猫"


def test_messages_and_progress(capsys):
  def main():
    runner.TerminalProgress().note("search", "at mysql://me:hush@h \x1b[2J")
    raise InputError("cannot open mysql://me:hush@h/db \x1b[2J")

  assert runner.run("verb", main) == 2
  captured = capsys.readouterr()
  for text in (captured.out, captured.err):
    assert "mysql://me:***@h" in text
    assert "\x1b" not in text


def test_a_storage_that_cannot_be_opened():
  with pytest.raises(InputError) as error:
    open_storage("postgresql://me:hush@host.invalid:nan/db")
  assert "hush" not in str(error.value)


@pytest.mark.parametrize("module", [search, quickstart])
def test_commands_in_reports(module, monkeypatch):
  name = module.__name__.rpartition(".")[2]
  word = "--config.storage=postgresql://me:it's hush@h/db"
  told: list[str] = []
  monkeypatch.setattr(
    module, name, lambda *args, commands, **kwargs: told.extend(commands)
  )
  monkeypatch.setattr(
    runner, "parse", lambda *args, **kwargs: (_Anything(), {})
  )
  module.main(["--workdir=a b", word])
  assert told == [
    f"python -m jaxmerge.{name} '--workdir=a b' "
    "'--config.storage=postgresql://me:***@h/db'"
  ]


class _Anything:
  def __getattr__(self, name: str) -> str:
    return ""


def test_names_that_a_merge_keeps(tiny_run, tmp_path):
  """A name is read as it was typed; what is kept of it has no secret."""
  place = tmp_path / "step?token=hush"
  shutil.copytree(tiny_run / "checkpoints/4", place)
  merge.merge(
    runner.load_config("configs/merge/uniform.py"),
    [str(place), f"{tiny_run}@8"],
    tmp_path / "out",
    progress=quiet,
  )
  provenance = read_metadata(tmp_path / "out").provenance
  names = [source["name"] for source in provenance["sources"]]
  assert names == [f"{tmp_path}/step?token=***", f"{tiny_run}@8"]


def test_a_presentable_text_is_both():
  assert presentable("mysql://a:hush@b \x07") == "mysql://a:***@b \\x07"
