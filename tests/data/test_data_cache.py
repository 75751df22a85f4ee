"""The token cache: exact, whole or absent, the same bytes every time."""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tokenizers

from jaxmerge.data import cache as cache_lib
from jaxmerge.data import splits as splits_lib
from jaxmerge.data.cache import open_cache, open_corpus
from jaxmerge.data.config import CorpusConfig, DataConfig
from jaxmerge.data.corpora import load_corpus
from jaxmerge.data.splits import SPLIT_NAMES
from jaxmerge.errors import InputError


def _prepare(texts, cache, progress=print, **kwargs):
  arguments = {"source": "text_files", "vocab_size": 300} | kwargs
  config = DataConfig(
    globs=(f"{texts}/**/*.txt",), cache_dir=str(cache), **arguments
  )
  return open_corpus(config, progress=progress)


def _set_fractions(monkeypatch, *shares):
  fractions = dict(zip(SPLIT_NAMES, shares))
  monkeypatch.setattr(splits_lib, "FRACTIONS", fractions)


def _bytes(corpus):
  """File name -> sha256, of all files of a cache."""
  folder = corpus.tokenizer_path.parent
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.iterdir()
  }


def test_every_document_is_there_token_for_token(texts, cached, tmp_path):
  corpus = load_corpus(
    CorpusConfig(
      source="text_files",
      globs=(f"{texts}/**/*.txt",),
      data_dir=str(tmp_path),
    )
  )
  expected = {d.id: d.text for d in corpus}
  found = {}
  for split in cached.splits.values():
    ids = split.document_ids()
    assert len(ids) == len(split.offsets_D1) - 1
    assert split.offsets_D1[-1] == len(split.tokens_T)
    for name, start, stop in zip(ids, split.offsets_D1, split.offsets_D1[1:]):
      tokens = split.tokens_T[start:stop]
      assert tokens[0] == split.end_of_text == 0
      assert (tokens[1:] != 0).all()
      found[name] = cached.tokenizer.decode(tokens[1:].tolist())
      size = cached.tokenizer.bytes_per_token_V[tokens].sum()
      assert size == len(expected[name].encode())
  assert found == expected


def test_splits_are_disjoint_and_as_their_rule_says(cached):
  names = [set(split.document_ids()) for split in cached.splits.values()]
  assert sum(map(len, names)) == len(set.union(*names)) == 80
  for split_name, ids in zip(SPLIT_NAMES, names):
    assert {splits_lib.split_of(i) for i in ids} == {split_name}


def test_the_cache_is_used_and_gives_the_same(texts, cached, tmp_path):
  said = []
  first = _prepare(texts, tmp_path, progress=said.append)
  assert any("tokenizing" in line for line in said)
  assert _bytes(first) == _bytes(cached)
  assert first.identity == cached.identity
  said.clear()
  again = _prepare(texts, tmp_path, progress=said.append)
  assert said == [f"text_files: {again.summary}"]
  assert again.identity == first.identity
  assert not (again.splits["train"].tokens_T.flags.writeable)


@pytest.mark.parametrize(
  "change",
  [
    {"vocab_size": 301},
    {"max_documents": 79},
    {"split": "train[1:]"},
  ],
)
def test_every_argument_makes_another_cache(texts, cached, tmp_path, change):
  assert _bytes(_prepare(texts, tmp_path)) == _bytes(cached)
  other = _prepare(texts, tmp_path, **change)
  assert other.identity != cached.identity
  assert _bytes(other) != _bytes(cached)


def test_other_fractions_make_another_cache(
  texts, cached, tmp_path, monkeypatch
):
  assert _bytes(_prepare(texts, tmp_path)) == _bytes(cached)
  _set_fractions(monkeypatch, 0.4, 0.2, 0.2, 0.2)
  other = _prepare(texts, tmp_path)
  assert other.identity != cached.identity
  assert _bytes(other) != _bytes(cached)


def test_a_given_tokenizer(texts, cached, tmp_path):
  path = str(cached.tokenizer_path)
  other = _prepare(texts, tmp_path, vocab_size=0, tokenizer_path=path)
  train, expected = other.splits["train"], cached.splits["train"]
  np.testing.assert_array_equal(train.tokens_T, expected.tokens_T)
  with pytest.raises(InputError, match="vocab_size must be at least 257"):
    _prepare(texts, tmp_path, vocab_size=0)


def test_a_sentencepiece_model_has_a_cache_of_its_own(texts, cached, tmp_path):
  folder = pathlib.Path(__file__).parent / "sentencepiece"
  model = folder / "llama.model"
  given = {"vocab_size": 0, "tokenizer_path": str(model)}
  corpus = _prepare(texts, tmp_path, **given)
  assert corpus.tokenizer_path.name == "tokenizer.model"
  assert corpus.tokenizer_path.read_bytes() == model.read_bytes()
  train = corpus.splits["train"]
  assert train.end_of_text == 2
  document = train.tokens_T[1 : train.offsets_D1[1]].tolist()
  [name, *_] = train.document_ids()
  text = (texts / name).read_text()
  assert corpus.tokenizer.encode_batch([text]) == [document]
  # One more: the space in front.
  assert (
    corpus.tokenizer.bytes_per_token_V[document].sum() == len(text.encode()) + 1
  )
  said = []
  again = _prepare(texts, tmp_path, progress=said.append, **given)
  assert said == [f"text_files: {again.summary}"]
  assert again.identity == corpus.identity
  content = bytearray(corpus.tokenizer_path.read_bytes())
  content[len(content) // 2] ^= 1
  corpus.tokenizer_path.write_bytes(content)
  mended = _prepare(texts, tmp_path, progress=said.append, **given)
  assert any("tokenizer.model is damaged" in line for line in said)
  assert mended.identity == corpus.identity
  given["tokenizer_path"] = str(folder / "unigram.model")
  assert _prepare(texts, tmp_path, **given).identity != corpus.identity


def test_a_large_vocabulary_needs_four_bytes(texts, cached, tmp_path):
  path = tmp_path / "tokenizer.json"
  big = tokenizers.Tokenizer.from_file(str(cached.tokenizer_path))
  big.add_tokens([f"unused word {i}" for i in range(2**16 - 300 + 1)])
  big.save(str(path))
  corpus = _prepare(texts, tmp_path, vocab_size=0, tokenizer_path=str(path))
  train = corpus.splits["train"]
  assert train.tokens_T.dtype == np.uint32
  assert cached.splits["train"].tokens_T.dtype == np.uint16
  np.testing.assert_array_equal(train.tokens_T, cached.splits["train"].tokens_T)
  assert len(corpus.tokenizer.bytes_per_token_V) == 2**16 + 1


@pytest.mark.parametrize(
  "name", ["train.tokens", "search.offsets", "report.ids", "tokenizer.json"]
)
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damage_is_found_and_mended(texts, cached, tmp_path, name, damage):
  said = []
  whole = _bytes(_prepare(texts, tmp_path))
  corpus = _prepare(texts, tmp_path)
  file = corpus.tokenizer_path.parent / name
  content = bytearray(file.read_bytes())
  if damage == "cut":
    file.write_bytes(content[:-1])
  elif damage == "flip":
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
  else:
    file.unlink()
  with pytest.raises(InputError, match=name):
    open_cache(file.parent)
  mended = _prepare(texts, tmp_path, progress=said.append)
  assert any("anew" in line and name in line for line in said)
  assert _bytes(mended) == whole


@pytest.mark.parametrize("content", ["", "{}", "[]", None])
def test_a_damaged_list_of_digests(texts, tmp_path, content):
  corpus = _prepare(texts, tmp_path)
  meta = corpus.tokenizer_path.parent / "meta.json"
  if content is None:
    content = meta.read_text().replace('"token_size": 2', '"token_size": 4')
  meta.write_text(content)
  with pytest.raises(InputError, match="meta.json"):
    open_cache(meta.parent)
  assert _prepare(texts, tmp_path).identity == corpus.identity


def test_an_error_in_the_middle_leaves_nothing(texts, tmp_path):
  def fail(text):
    if "tokenizing" in text:
      raise RuntimeError("stop here")

  with pytest.raises(RuntimeError, match="stop here"):
    _prepare(texts, tmp_path, progress=fail)
  assert list((tmp_path / "tokens").iterdir()) == []


KILLED = """
import os, signal, sys
from jaxmerge.data.cache import open_cache, open_corpus
from jaxmerge.data.config import DataConfig
texts, cache, moment = sys.argv[1:]
def die(text):
  if text.startswith(moment):
    os.kill(os.getpid(), signal.SIGKILL)
config = DataConfig(source="text_files", globs=(texts + "/**/*.txt",),
                    cache_dir=cache, vocab_size=300)
open_corpus(config, progress=die)
"""


@pytest.mark.parametrize("moment", ["preparing", "training", "tokenizing"])
def test_killed_and_repeated_gives_the_same_bytes(
  texts, cached, tmp_path, moment
):
  command = [sys.executable, "-c", KILLED, str(texts), str(tmp_path), moment]
  killed = subprocess.run(command, check=False)
  assert killed.returncode == -signal.SIGKILL
  assert _bytes(_prepare(texts, tmp_path)) == _bytes(cached)


def test_two_processes_at_once(texts, cached, tmp_path):
  start = tmp_path / "start"
  program = (
    f"""
import os, time
while not os.path.exists({str(start)!r}): time.sleep(0.001)
"""
    + KILLED
  )
  arguments = [str(texts), str(tmp_path / "cache"), "never"]
  command = [sys.executable, "-c", program, *arguments]
  running = [subprocess.Popen(command) for _ in range(2)]
  time.sleep(0.2)
  start.touch()
  assert [process.wait() for process in running] == [0, 0]
  corpus = _prepare(texts, tmp_path / "cache")
  assert _bytes(corpus) == _bytes(cached)
  folders = os.listdir(tmp_path / "cache" / "tokens")
  assert folders == [corpus.tokenizer_path.parent.name]


def test_another_process_may_finish_first(texts, cached, tmp_path):
  """The slower of two builders keeps what the faster one wrote."""
  said = []

  def race(text):
    said.append(text)
    if text.startswith("tokenizing") and len(said) < 9:
      said.extend(["started the other"] * 9)
      _prepare(texts, tmp_path)

  corpus = _prepare(texts, tmp_path, progress=race)
  assert "another process wrote" in said[-2]
  assert _bytes(corpus) == _bytes(cached)


def test_a_directory_that_cannot_be_renamed_to(texts, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(cache_lib, "write_json", full)
  with pytest.raises(InputError, match="No space left on device"):
    _prepare(texts, tmp_path)
  assert list((tmp_path / "tokens").iterdir()) == []


def test_too_little_text_for_four_splits(text_writer, tmp_path, monkeypatch):
  text_writer(tmp_path / "few", count=21)
  _set_fractions(monkeypatch, 0.97, 0.01, 0.01, 0.01)
  with pytest.raises(InputError, match="none of them falls into"):
    _prepare(tmp_path / "few", tmp_path / "cache")
  assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_one_long_document_is_enough(tmp_path):
  (tmp_path / "play.txt").write_text(
    "".join(f"Line {i} of a play.\n" for i in range(30_000))
  )
  corpus = _prepare(tmp_path, tmp_path / "cache")
  pieces = {}
  for split in corpus.splits.values():
    assert len(split.offsets_D1) > 4
    for name, a, b in zip(
      split.document_ids(), split.offsets_D1, split.offsets_D1[1:]
    ):
      number = int(name.removeprefix("play.txt#"))
      pieces[number] = corpus.tokenizer.decode(
        split.tokens_T[a + 1 : b].tolist()
      )
  text = "".join(pieces[i] for i in range(len(pieces)))
  assert text == (tmp_path / "play.txt").read_text()


def test_the_standard_library(tmp_path):
  """The default corpus, in a small vocabulary; no TensorFlow on the way."""
  corpus = open_corpus(
    DataConfig(
      source="python_source",
      cache_dir=str(tmp_path),
      vocab_size=300,
      max_documents=120,
    )
  )
  assert all(
    name.endswith(".py") for name in corpus.splits["report"].document_ids()
  )
  assert len(corpus.splits["train"].tokens_T) > 100_000
  assert "tensorflow" not in sys.modules
