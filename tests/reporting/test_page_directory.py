"""A report writes its own files by name and leaves all others."""

import dataclasses
import errno
import os

import pytest

from jaxmerge import files
from jaxmerge.errors import InputError
from jaxmerge.reporting.page import check_report_directory, write_report
from tests.helpers import contents

_PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def arguments(results):
  return {
    "title": "A report",
    "results": results,
    "figures": {"convergence": _PNG + b"1", "hedge": _PNG + b"2"},
    "facts": {"corpus": "made up"},
    "commands": [],
  }


def test_a_second_report_leaves_what_is_not_its_own(tmp_path, arguments):
  folder = tmp_path / "report"
  write_report(folder, **arguments)
  mine = {
    "notes.md": b"what I make of it",
    "my figure.png": _PNG,
    "hedge.svg": b"<svg/>",
    "data/a.csv": b"1",
    ".hidden": b"2",
  }
  (folder / "data").mkdir()
  for name, content in mine.items():
    (folder / name).write_bytes(content)
  again = {**arguments, "title": "again", "figures": {"hedge": _PNG + b"3"}}
  write_report(folder, **again)
  found = contents(folder)
  assert b"<h1>again</h1>" in found["report.html"]
  assert found["hedge.png"] == _PNG + b"3"
  # A figure that the second one does not have is not left from the first.
  own = {"report.html", "results.json", "hedge.png", "data"}
  assert found.keys() == own | mine.keys()
  assert mine.items() <= found.items()
  assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_report_goes_beside_other_files(tmp_path, arguments):
  folder = tmp_path / "thesis"
  folder.mkdir()
  (folder / "chapter.txt").write_text("years of work")
  write_report(folder, **arguments)
  found = contents(folder)
  assert found["chapter.txt"] == b"years of work"
  assert len(found) == 5


_THEIRS = [
  ("results.json", b'{"grade": 1}'),
  ("results.json", b"[" * 100_000),
  ("results.json", b'{"rows": [1]}'),
  ("report.html", b"<html>my annual report</html>"),
]
_THEIR_FIGURES = [
  ("hedge.png", _PNG),
  # One that the new report would not even write, but a later one might.
  ("slices.png", _PNG),
]


@pytest.mark.parametrize(
  ("name", "content", "beside_a_report"),
  [
    *((*theirs, False) for theirs in _THEIRS + _THEIR_FIGURES),
    # A report's figures are known by its page.
    *((*theirs, True) for theirs in _THEIRS),
  ],
)
def test_a_file_of_anothers_is_not_replaced(
  tmp_path, arguments, name, content, beside_a_report
):
  folder = tmp_path / "report"
  folder.mkdir()
  if beside_a_report:
    write_report(folder, **arguments)
  (folder / name).write_bytes(content)
  before = contents(tmp_path)
  for look in (
    lambda directory: check_report_directory(directory, "pair"),
    lambda directory: write_report(directory, **arguments),
  ):
    with pytest.raises(InputError, match=f"{name} is not of an earlier report"):
      look(folder)
  assert contents(tmp_path) == before


def test_a_report_of_another_study_is_not_replaced(tmp_path, arguments):
  write_report(tmp_path / "r", **arguments)
  before = contents(tmp_path)
  other = dataclasses.replace(arguments["results"], study="six")
  for look in (
    lambda: check_report_directory(tmp_path / "r", "six"),
    lambda: write_report(tmp_path / "r", **{**arguments, "results": other}),
  ):
    with pytest.raises(InputError, match="of the study 'pair', not of 'six'"):
      look()
  assert contents(tmp_path) == before
  # One of before they named their study goes on.
  results = tmp_path / "r/results.json"
  results.write_text(results.read_text().replace('"study": "pair"', '"a": 1'))
  check_report_directory(tmp_path / "r", "six")


def test_a_folder_of_the_name_of_a_file_is_refused(tmp_path, arguments):
  write_report(tmp_path / "r", **arguments)
  (tmp_path / "r/slices.png").mkdir()
  with pytest.raises(InputError, match=r"slices\.png is not of an earlier"):
    write_report(tmp_path / "r", **arguments)


def test_a_report_of_an_older_version_is_replaced(tmp_path, arguments):
  write_report(tmp_path / "r", **arguments)
  page = tmp_path / "r/report.html"
  old = page.read_text().replace(
    '<meta name="generator" content="jaxmerge">\n', ""
  )
  assert old != page.read_text()
  page.write_text(old)
  write_report(tmp_path / "r", **{**arguments, "title": "again"})
  assert "<h1>again</h1>" in page.read_text()


def test_a_report_goes_where_a_link_leads(tmp_path, arguments):
  (tmp_path / "disk").mkdir()
  (tmp_path / "report").symlink_to("disk/r")
  (tmp_path / "disk/r").mkdir()
  (tmp_path / "disk/r/notes.md").write_text("mine")
  write_report(tmp_path / "report", **arguments)
  assert os.readlink(tmp_path / "report") == "disk/r"
  assert (tmp_path / "disk/r/notes.md").read_text() == "mine"
  assert (tmp_path / "disk/r/report.html").exists()


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(
  tmp_path, arguments, monkeypatch
):
  write_report(tmp_path / "r", **arguments)
  before = contents(tmp_path)

  def full(path, results):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr("jaxmerge.reporting.page.write_results", full)
  for name in ("r", "new"):
    with pytest.raises(InputError, match="No space left"):
      write_report(tmp_path / name, **{**arguments, "title": "again"})
  assert contents(tmp_path) == before
  assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_what_a_killed_report_left_is_removed(tmp_path, arguments):
  me = files.process_liveness.this_process()
  left = tmp_path / f".r.tmp-{me.host}-999999999-0123abcd"
  left.mkdir()
  (left / "report.html").touch()
  write_report(tmp_path / "r", **arguments)
  assert [path.name for path in tmp_path.iterdir()] == ["r"]
