"""Files of tokens: the documents of a text, and files that are refused."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxmerge.data import mixture, token_files
from jaxmerge.data.cache import open_corpus
from jaxmerge.data.config import CorpusConfig, DataConfig, PartConfig
from jaxmerge.data.corpora import changed_files, content_hash, load_corpus
from jaxmerge.data.heldout import held_out
from jaxmerge.data.token_files import open_stream
from jaxmerge.errors import InputError

HEADER = 256


def documents_of(corpus):
  """The tokens of all documents, in order of themselves, without ends."""
  return sorted(
    tokens.tokens_T[start + 1 : stop].tolist()
    for tokens in corpus.splits.values()
    for start, stop in zip(tokens.offsets_D1, tokens.offsets_D1[1:])
  )


def config_of(folder, cached, **kwargs):
  return DataConfig(
    source="tokenized_files",
    globs=(str(folder / "in"),),
    cache_dir=str(folder / "cache"),
    tokenizer_path=str(cached.tokenizer_path),
    **kwargs,
  )


def stream_of(documents, end_of_text=0, ends=False):
  """All documents, each behind its end of text, or before it."""
  cut = [end_of_text]
  return [t for d in documents for t in (d + cut if ends else cut + d)]


def llm_c(path, stream, magic=20240520, kind="<u2"):
  header = np.zeros(HEADER, "<i4")
  header[:3] = magic, 1, len(stream)
  path.write_bytes(header.tobytes() + np.array(stream, kind).tobytes())


def table(path, documents, key="input_ids", kind=None):
  kind = kind or pa.list_(pa.int32())
  rows = pa.table({key: pa.array(documents, kind)})
  if path.suffix == ".parquet":
    pq.write_table(rows, path)
  else:
    with pa.ipc.new_stream(str(path), rows.schema) as writer:
      writer.write_table(rows)


def lines(path, documents):
  said = [
    json.dumps({"input_ids": d, "id": n}) for n, d in enumerate(documents)
  ]
  path.write_text("\n".join(said))


WRITERS = {
  "a.npy": lambda path, d: np.save(path, np.array(stream_of(d), np.uint16)),
  "b.npy": lambda path, d: np.save(
    path, np.array(stream_of(d, ends=True), ">i4")
  ),
  "a.bin": lambda path, d: np.array(stream_of(d), "<u2").tofile(path),
  "b.bin": lambda path, d: np.array(stream_of(d, ends=True), "<u4").tofile(
    path
  ),
  "llm_c.bin": lambda path, d: llm_c(path, stream_of(d)),
  "llama.bin": lambda path, d: llm_c(path, stream_of(d), 20240801, "<u4"),
  "a.parquet": table,
  "a.arrow": lambda path, d: table(path, d, kind=pa.large_list(pa.uint16())),
  "b.parquet": lambda path, d: table(path, [stream_of(d[:30]), *d[30:], []]),
  "a.jsonl": lines,
}


@pytest.mark.parametrize("name", WRITERS)
def test_tokens_are_those_of_the_text(tmp_path, cached, name):
  (tmp_path / "in").mkdir()
  documents = documents_of(cached)
  WRITERS[name](tmp_path / "in" / name, documents)
  corpus = open_corpus(config_of(tmp_path, cached))
  assert documents_of(corpus) == documents
  for split in corpus.splits.values():
    assert len(split.offsets_D1) > 1
    assert (split.tokens_T[split.offsets_D1[:-1]] == split.end_of_text).all()
  rate_V = corpus.tokenizer.bytes_per_token_V
  tokens = corpus.splits["train"]
  sequences = held_out(tokens, rate_V, seq_len=32)
  text = corpus.tokenizer.decode(tokens.tokens_T.tolist())
  assert sequences.bytes_N.sum() == len(text.encode())
  blank = {"blank": 1} if name == "b.parquet" else {}
  assert corpus.skipped.numbers == blank


def test_a_copy_is_used_again_and_knows_its_files(tmp_path, cached):
  (tmp_path / "in").mkdir()
  lines(tmp_path / "in" / "a.jsonl", documents_of(cached))
  config, said = config_of(tmp_path, cached), []
  first = open_corpus(config)
  again = open_corpus(config, progress=said.append)
  assert said == [f"tokenized_files: {again.summary}"]
  assert again.identity == first.identity
  before = content_hash(config)
  lines(tmp_path / "in" / "a.jsonl", documents_of(cached)[1:])
  assert changed_files(config, before) == "changed: a.jsonl"
  assert open_corpus(config).identity != first.identity


def test_a_stream_without_ends_is_cut(tmp_path, cached, monkeypatch):
  monkeypatch.setattr(token_files, "PART", 100)
  (tmp_path / "in").mkdir()
  stream = [t for d in documents_of(cached) for t in d]
  np.save(tmp_path / "in" / "a.npy", np.array(stream, np.uint16))
  corpus = load_corpus(config_of(tmp_path, cached), tokenizer=cached.tokenizer)
  found = {int(d.id.removeprefix("a.npy:")): d.tokens_T for d in corpus}
  assert {len(tokens) for tokens in found.values()} <= {100, len(stream) % 100}
  whole = np.concatenate([found[n] for n in range(1, len(found) + 1)])
  assert whole.tolist() == stream


def test_few_tokens_are_cut_so_that_splits_are_filled(tmp_path, cached):
  (tmp_path / "in").mkdir()
  rng = np.random.default_rng(0)
  stream = rng.integers(1, cached.tokenizer.size, 2**17)
  np.save(tmp_path / "in" / "a.npy", stream)
  corpus = open_corpus(config_of(tmp_path, cached))
  documents = documents_of(corpus)
  assert {len(d) for d in documents} == {512}
  assert sum(map(len, documents)) == len(stream)


def test_ids_outside_of_the_vocabulary_are_counted(tmp_path, cached):
  (tmp_path / "in").mkdir()
  size = cached.tokenizer.size
  stream = np.arange(1000, dtype=np.int32) % size
  stream[[500, 600]] = size, -1
  np.save(tmp_path / "in" / "a.npy", stream)
  rows = [[1], [2, 70_000, 70_001]]
  table(tmp_path / "in" / "b.parquet", rows)
  lines(tmp_path / "in" / "c.jsonl", [[1, 2, 3]])
  with pytest.raises(InputError) as caught:
    open_corpus(config_of(tmp_path, cached))
  of_stream, of_rows = caught.value.problems
  told = f"ids are outside of the tokenizer's vocabulary of {size} (the first: "
  assert of_stream.endswith(f"a.npy: 2 {told}{size}, at 500)")
  assert of_rows.endswith(f"b.parquet: 2 {told}70000, row 2 at 1)")


DAMAGED = {
  "a.npy": (lambda p: p.write_bytes(b"no array"), "damaged NumPy file"),
  "b.npy": (lambda p: np.save(p, np.ones(4)), "float64.4., not one row of int"),
  "c.npy": (lambda p: np.save(p, np.ones((2, 2), int)), "not one row of integ"),
  "d.npy": (lambda p: np.save(p, np.ones(0, int)), "holds no tokens"),
  "e.npy": (
    lambda p: (
      np.save(p, np.ones(9, int))
      or p.write_bytes(p.read_bytes().replace(b"}", b" "))
    ),
    "damaged NumPy file",
  ),
  "a.bin": (lambda p: p.write_bytes(b""), "is empty"),
  "b.bin": (
    lambda p: p.write_bytes(b"\1\1\1"),
    "3 bytes are no whole number of u",
  ),
  "c.bin": (
    lambda p: llm_c(p, [0, 1]) or p.write_bytes(p.read_bytes()[:-2]),
    "its header says 2 tokens, it has 1",
  ),
  "a.parquet": (lambda p: p.write_bytes(b"PAR1"), "damaged Parquet file"),
  "b.parquet": (
    lambda p: table(p, [["a"]], kind=pa.list_(pa.string())),
    "holds list<.*string>, not lists of integers",
  ),
  "c.parquet": (lambda p: table(p, [[1]], "ids"), 'no column "input_ids"'),
  "d.parquet": (lambda p: table(p, [[1, None]]), "row 1: a token of"),
  "a.jsonl": (lambda p: lines(p, [[1.5]]), "line 1: .* is not a list of integ"),
  "b.jsonl": (lambda p: lines(p, [[2**70]]), f'"input_ids" holds {2**70}'),
}


def test_all_files_that_are_none_are_told_at_once(tmp_path, cached):
  (tmp_path / "in").mkdir()
  for name, (write, _) in DAMAGED.items():
    write(tmp_path / "in" / name)
  with pytest.raises(InputError) as caught:
    content_hash(config_of(tmp_path, cached))
  problems = {p.split("/in/")[1]: p for p in caught.value.problems}
  assert len(problems) == len(DAMAGED)
  for told, name in zip(sorted(problems), sorted(DAMAGED)):
    with pytest.raises(InputError, match=DAMAGED[name][1]):
      raise InputError(told)
    assert told.startswith(name)


def test_what_tokens_need(tmp_path, cached):
  (tmp_path / "in").mkdir()
  lines(tmp_path / "in" / "a.jsonl", [[1]])
  config = config_of(tmp_path, cached)
  alone = DataConfig(source=config.source, globs=config.globs, vocab_size=300)
  [problem] = alone.problems("data.")
  assert "needs the tokenizer that made its tokens, as data.token" in problem
  assert not config.problems("data.")
  with pytest.raises(InputError, match="needs its tokenizer"):
    open_corpus(alone)
  own = CorpusConfig(source=config.source, globs=config.globs)
  assert content_hash(own) == content_hash(config)
  (tmp_path / "in" / "a.txt").write_text("text")
  with pytest.raises(InputError, match=r"1 matched files are not \.npy"):
    content_hash(
      CorpusConfig(source=config.source, globs=(f"{tmp_path}/in/*",))
    )


def test_tokens_are_mixed_with_text(tmp_path, texts, cached):
  (tmp_path / "in").mkdir()
  lines(tmp_path / "in" / "a.jsonl", documents_of(cached))
  globs = {"tokenized_files": f"{tmp_path}/in", "text_files": str(texts)}
  parts = {
    name.partition("_")[0]: PartConfig(source=name, globs=(where,))
    for name, where in globs.items()
  }
  alone = DataConfig(mixture=parts, vocab_size=300, cache_dir=str(tmp_path))
  [problem] = alone.problems("data.")
  assert "needs the tokenizer that made its tokens" in problem
  path = str(cached.tokenizer_path)
  config = dataclasses.replace(alone, vocab_size=0, tokenizer_path=path)
  assert not config.problems("data.")
  found = mixture.open_corpus(config)
  documents = [documents_of(part) for part in found.parts.values()]
  assert documents == [documents_of(cached)] * 2


def test_the_type_of_a_bin_without_a_header(tmp_path):
  path = tmp_path / "a.bin"
  np.array([5, 0, 7, 0], "<u2").tofile(path)
  assert open_stream(str(path), 300).tolist() == [5, 7]
  np.array([5, 0, 7, 1], "<u2").tofile(path)
  assert open_stream(str(path), 300).tolist() == [5, 0, 7, 1]
  assert open_stream(str(path), 2**16 + 1).tolist() == [5, 7 + 2**16]
