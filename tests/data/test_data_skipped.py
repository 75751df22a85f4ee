"""What of a corpus is not trained on is counted by reason, and told."""

import codecs
import gzip
import json
import pathlib
import random

import pytest

from jaxmerge.data import local_text
from jaxmerge.data.cache import TokenizedCorpus, open_corpus
from jaxmerge.data.config import CorpusConfig, DataConfig
from jaxmerge.data.corpora import Corpus, load_corpus
from jaxmerge.data.documents import Skip, Skipped, from_json
from jaxmerge.data.splits import assigned_documents
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.errors import InputError

MARK = codecs.BOM_UTF8
UTF16 = "UTF-16, to be converted to UTF-8"


def load(folder: pathlib.Path, files: dict[str, bytes]) -> Corpus:
  (folder / "in").mkdir()
  for name, content in files.items():
    (folder / "in" / name).write_bytes(content)
  return load_corpus(
    CorpusConfig(
      source="text_files",
      globs=(f"{folder}/in/*",),
      data_dir=str(folder / "data"),
    )
  )


def texts_of(corpus: Corpus) -> dict[str, str]:
  return {document.id: document.text for document in corpus}


def lines(*values: object) -> bytes:
  return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def test_every_reason_is_counted_and_names_the_first(tmp_path):
  corpus = load(
    tmp_path,
    {
      "good.txt": b"good",
      "latin.txt": "caf\xe9".encode("latin-1"),
      "latin.md": "caf\xe9".encode("latin-1"),
      "marked.txt": "wide".encode("utf-16"),
      "big.txt": codecs.BOM_UTF16_BE + "wide".encode("utf-16-be"),
      "plain.py": "wide = 1".encode("utf-16-le"),
      "wider.txt": "wide".encode("utf-32"),
      "blank.txt": MARK + b" \n",
      "wide.jsonl": '{"text": "a"}\n'.encode("utf-16"),
      "wide.jsonl.gz": gzip.compress('{"text": "a"}\n'.encode("utf-16")),
      "some.jsonl": b'{"text": "caf\xe9"}\n'
      + lines({"text": " ", "id": "b"}, {"text": "\ud800"}, {"text": "fine"}),
    },
  )
  assert texts_of(corpus) == {"good.txt": "good", "some.jsonl:4": "fine"}
  assert corpus.skipped == {
    "not UTF-8": Skip(3, "latin.md"),
    UTF16: Skip(5, "big.txt"),
    "UTF-32, to be converted to UTF-8": Skip(1, "wider.txt"),
    "blank": Skip(2, "blank.txt"),
    "with half of a surrogate pair": Skip(1, "some.jsonl:3"),
  }


def test_a_byte_order_mark_is_stripped_everywhere(tmp_path):
  one = MARK + lines({"text": "line"})
  corpus = load(
    tmp_path,
    {
      **{f"a.{kind}": MARK + b"text" for kind in ("txt", "md", "py")},
      "a.jsonl": one,
      "a.jsonl.gz": gzip.compress(one),
    },
  )
  assert sorted(texts_of(corpus).values()) == ["line"] * 2 + ["text"] * 3
  assert not corpus.skipped


def test_a_mark_makes_another_corpus_and_none_the_same(tmp_path):
  """Tokens that were cached with the mark in them are not met again."""
  places = [tmp_path / name for name in "ab"]
  for place in places:
    place.mkdir()
  plain, marked = (
    load(place, {"a.txt": mark + b"text"})
    for place, mark in zip(places, (b"", MARK))
  )
  assert plain.identity != marked.identity
  assert plain.identity == (  # as before there were marks
    "2bb6c6ad04db1bf976ac827aea8ad8a457aae427c43795d90cc18ace0aa5a098"
  )


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    ("wide".encode("utf-16"), f"1 skipped: 1 {UTF16} \\(first: a.txt\\)"),
    (b"caf\xe9", "1 not UTF-8"),
    (b"", "1 blank"),
  ],
)
def test_a_corpus_without_a_document_says_why(tmp_path, content, reason):
  with pytest.raises(InputError, match=f"no document: .*{reason}"):
    load(tmp_path, {"a.txt": content})


def test_ids_only_name_documents(tmp_path):
  ids = [1, 1, "1", None, None, [2], "", "", "\ud800", "\ud800", True, 1.5]
  records = [{"text": f"text {n}", "id": i} for n, i in enumerate(ids)]
  files = {"a.jsonl": lines(*records), "b.jsonl": lines(*records)}
  corpus = load(tmp_path, files)
  assert len(texts_of(corpus)) == len(list(corpus)) == 2 * len(ids)
  names = texts_of(corpus)
  assert names["a.jsonl:1"] == "text 0"
  assert names["a.jsonl:1@2"] == "text 1"
  assert names["a.jsonl:1@3"] == "text 2"
  assert names["a.jsonl:\\ud800"] == "text 8"


def test_what_goes_wrong_is_told_not_what_tells_it(tmp_path, monkeypatch):
  """TFDS asks for TensorFlow in the middle of another error's message."""

  def the_same(name, seen):
    seen[name.encode()] = 1
    return name

  monkeypatch.setattr(local_text, "_distinct", the_same)
  records = [{"text": "a", "id": 1}, {"text": "b", "id": 1}]
  with pytest.raises(InputError) as error:
    load(tmp_path, {"a.jsonl": lines(*records)})
  assert "tensorflow" not in str(error.value)
  assert "uplicate" in str(error.value)


def test_a_file_whose_name_is_not_utf8(tmp_path):
  corpus = load(tmp_path, {"a.txt": b"one", "caf\udce9.txt": b"two"})
  assert texts_of(corpus) == {"a.txt": "one", "caf\\udce9.txt": "two"}


def test_json_that_is_too_deep_names_its_line(tmp_path):
  deep = b'{"text": "a"}\n{"text": ' + b"[" * 100_000
  with pytest.raises(InputError, match="a.jsonl, line 2: nested too deeply"):
    load(tmp_path, {"a.jsonl": deep})


def test_globs_that_lead_upwards(tmp_path):
  (tmp_path / "x").mkdir()
  (tmp_path / "a.txt").write_text("one")
  corpus = load_corpus(
    CorpusConfig(
      source="text_files",
      globs=(f"{tmp_path}/x/../*.txt",),
      data_dir=str(tmp_path / "data"),
    )
  )
  assert texts_of(corpus) == {"a.txt": "one"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[pathlib.Path, list[list[str]]]:
  """300 files, of them 100 not UTF-8; prepared twice, with what was said."""
  folder = tmp_path_factory.mktemp("mixed")
  rng = random.Random(0)
  (folder / "in").mkdir()
  for number in range(300):
    text = f"{number} " + " ".join(rng.choices(["cat", "naïve", "sat"], k=30))
    encoding = "utf-16" if number % 3 == 0 else "utf-8"
    name = folder / "in" / f"{number:03}.txt"
    name.write_bytes(text.encode(encoding))
  (folder / "in" / "copy.txt").write_bytes((folder / "in/001.txt").read_bytes())
  (folder / "in" / "blank.txt").write_bytes(b"")
  said: list[list[str]] = [[], []]
  for told in said:
    again(folder, told)
  return folder, said


def again(folder: pathlib.Path, told: list[str]) -> TokenizedCorpus:
  config = DataConfig(
    source="text_files",
    globs=(f"{folder}/in/*.txt",),
    cache_dir=str(folder / "cache"),
    vocab_size=300,
  )
  return open_corpus(config, progress=told.append)


def test_one_line_tells_it_also_from_the_cache(mixed):
  _, said = mixed
  for told in said:
    [line] = [text for text in told if "skipped" in text]
    start, _, reasons = line.partition(": ")[2].partition(": ")
    assert start == "200 documents, 102 skipped"
    assert f"100 {UTF16} (first: 000.txt)" in reasons
    assert "1 blank (first: blank.txt)" in reasons
    assert "1 of a text that is there before (first: " in reasons
  assert len(said[1]) == 1


def test_checkpoints_can_carry_the_numbers(mixed):
  folder, _ = mixed
  assert again(folder, []).skipped.numbers == {
    UTF16: 100,
    "blank": 1,
    "of a text that is there before": 1,
  }


def test_a_cache_of_before_is_still_read(mixed):
  folder, _ = mixed
  corpus = again(folder, [])
  [meta] = folder.glob("cache/tokens/*/meta.json")
  text = meta.read_text()
  value = json.loads(text)
  del value["skipped"]
  meta.write_text(json.dumps(value))
  try:
    old = again(folder, [])
    assert old.identity == corpus.identity
    assert old.skipped.numbers == {"not UTF-8 or blank": 101}
  finally:
    meta.write_text(text)


@pytest.mark.parametrize("value", ["many", -1, {"blank": 3}, {"blank": [1, 2]}])
def test_numbers_that_are_none(value):
  with pytest.raises(ValueError, match="said to be"):
    from_json(value)


def test_a_catalogue_s_documents_that_are_none():
  class Records(list):
    def __getitems__(self, indices):
      return [self[i] for i in indices]

  corpus = Corpus(
    source="made",
    identity="0",
    skipped=Skipped(),
    directory="",
    records=Records({"text": t} for t in (b"a", b" ", b"\xff", b"b")),
    size=4,
    text_feature="text",
    id_feature=None,
  )
  skipped = Skipped()
  found = assigned_documents(corpus, skipped)
  assert [document.text for _, document in found] == ["a", "b"]
  assert skipped.numbers == {"blank": 1, "not UTF-8": 1}
  assert skipped["not UTF-8"].first == "record 2"


def test_equal_files_are_what_is_told(tmp_path):
  (tmp_path / "in").mkdir()
  for number in range(40):
    (tmp_path / "in" / f"{number}.txt").write_text("the same text")
  config = DataConfig(
    source="text_files",
    globs=(f"{tmp_path}/in/*",),
    cache_dir=str(tmp_path / "cache"),
    vocab_size=300,
  )
  with pytest.raises(InputError) as error:
    open_corpus(config)
  message = str(error.value)
  assert "has 40 documents, which give 1 different texts" in message
  assert "39 of a text that is there before" in message
  assert "fewer than 20" not in message


def test_a_tokenizer_json_may_have_a_mark(mixed, tmp_path):
  folder, _ = mixed
  path = again(folder, []).tokenizer_path
  marked = tmp_path / "tokenizer.json"
  marked.write_bytes(MARK + path.read_bytes())
  assert load_tokenizer(marked).hash == load_tokenizer(path).hash
