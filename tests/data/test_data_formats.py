"""The same documents in every kind of file, and files that are none."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python import array_record_module

from jaxmerge.data.cache import open_corpus
from jaxmerge.data.config import CorpusConfig, DataConfig
from jaxmerge.data.corpora import content_hash, load_corpus
from jaxmerge.data.splits import split_of
from jaxmerge.errors import InputError

# Enough that, by their names, each split has one in every kind of file.
DOCUMENTS = [
  f"The {n}th text is naïve.\nIt has lines; 猫 {n}." for n in range(150)
]


def zstd(content):
  sink = pa.BufferOutputStream()
  with pa.CompressedOutputStream(sink, "zstd") as stream:
    stream.write(content)
  return sink.getvalue().to_pybytes()


PACKED = {"": bytes, ".gz": lambda c: gzip.compress(c, mtime=0), ".zst": zstd}


def json_lines(path, records):
  lines = "".join(json.dumps(record) + "\n" for record in records)
  pack = next(PACKED[e] for e in (".gz", ".zst", "") if path.name.endswith(e))
  path.write_bytes(pack(lines.encode()))


def parquet(path, records):
  pq.write_table(pa.Table.from_pylist(records), path, row_group_size=40)


def arrow(path, records):
  table = pa.Table.from_pylist(records)
  with pa.ipc.new_stream(str(path), table.schema) as writer:
    writer.write_table(table, max_chunksize=60)


def feather(path, records):
  table = pa.Table.from_pylist(records)
  with pa.ipc.new_file(str(path), table.schema) as writer:
    writer.write_table(table)


def saved_dataset(path, records, name="data-00000-of-00001.arrow"):
  """As `datasets.save_to_disk` lays it out, with a cache beside it."""
  path.mkdir(parents=True)
  arrow(path / name, records)
  arrow(path / "cache-1a2b.arrow", [{"text": "a cache"}])
  state = {"_data_files": [{"filename": name}], "_split": "train"}
  (path / "state.json").write_text(json.dumps(state, indent=2))
  (path / "dataset_info.json").write_text('{\n "features": {}\n}')


def saved_splits(path, records):
  saved_dataset(path / "train", records[:100])
  saved_dataset(path / "test", records[100:])
  (path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')


def cached_dataset(path, records):
  saved_dataset(path, records)
  (path / "state.json").unlink()
  (path / "cache-1a2b.arrow").unlink()


def array_record(path, records, as_line=json.dumps):
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(as_line(record).encode())
  writer.close()


def texts_alone(path, records):
  array_record(path, records, as_line=lambda record: record["text"])


WRITERS = {
  **{
    f"a{kind}{how}": json_lines
    for kind in (".jsonl", ".json")
    for how in PACKED
  },
  "a.parquet": parquet,
  "a.arrow": arrow,
  "b.arrow": feather,
  "saved": saved_dataset,
  "splits": saved_splits,
  "cached": cached_dataset,
  "a.array_record": array_record,
  "b.arrayrecord": texts_alone,
}


def named(folder, name):
  """The folder; the file itself where a folder does not stand for it."""
  return folder / name if name.endswith(".json") else folder


def config_of(folder, data, **kwargs):
  return CorpusConfig(
    source="text_files", globs=(str(folder),), data_dir=str(data), **kwargs
  )


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizer")
  records = [{"text": text} for text in DOCUMENTS]
  json_lines(folder / "a.jsonl", records)
  corpus = open_corpus(
    DataConfig(
      source="text_files",
      globs=(str(folder),),
      cache_dir=str(folder / "cache"),
      vocab_size=300,
    )
  )
  return str(corpus.tokenizer_path)


def tokens_by_document(corpus):
  """The tokens of each document, and the split that it is in, by its id."""
  return {
    name: (split, tokens.tokens_T[start:stop].tolist())
    for split, tokens in corpus.splits.items()
    for name, start, stop in zip(
      tokens.document_ids(), tokens.offsets_D1, tokens.offsets_D1[1:]
    )
  }


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_tokens(
  tmp_path, tokenizer_path, name
):
  records = [{"text": t, "n": n} for n, t in enumerate(DOCUMENTS)]
  (tmp_path / "in").mkdir()
  WRITERS[name](tmp_path / "in" / name, records)
  (tmp_path / "in/setting.json").write_text("{")  # no document
  corpus = open_corpus(
    DataConfig(
      source="text_files",
      globs=(str(named(tmp_path / "in", name)),),
      cache_dir=str(tmp_path / "cache"),
      tokenizer_path=tokenizer_path,
    )
  )
  found = tokens_by_document(corpus)
  encode = corpus.tokenizer.encode_batch
  expected = [[corpus.tokenizer.end_of_text, *ids] for ids in encode(DOCUMENTS)]
  assert sorted(tokens for _, tokens in found.values()) == sorted(expected)
  # By the rule of their names, in which a record is its number in its file.
  assert all(split == split_of(name) for name, (split, _) in found.items())
  numbers = [int(name.rpartition(":")[2]) for name in found]
  parts = (100, 50) if name == "splits" else (150,)
  assert sorted(numbers) == sorted(n + 1 for p in parts for n in range(p))


@pytest.mark.parametrize("how", [".gz", ".zst"])
def test_compressed_text_is_a_document(tmp_path, how):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / f"a.txt{how}").write_bytes(
    PACKED[how](b"\xef\xbb\xbfnaive")
  )
  corpus = load_corpus(config_of(tmp_path / "in", tmp_path / "data"))
  assert [tuple(d)[:2] for d in corpus] == [(f"a.txt{how}", "naive")]


def test_several_frames_of_zstd_are_one_file(tmp_path):
  (tmp_path / "in").mkdir()
  lines = [json.dumps({"text": t}).encode() + b"\n" for t in DOCUMENTS[:9]]
  content = b"".join(map(zstd, lines))
  (tmp_path / "in" / "a.jsonl.zst").write_bytes(content)
  corpus = load_corpus(config_of(tmp_path / "in", tmp_path / "data"))
  assert sorted(d.text for d in corpus) == sorted(DOCUMENTS[:9])


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet", "a.arrow"])
def test_another_key_is_another_corpus(tmp_path, name):
  (tmp_path / "in").mkdir()
  records = [
    {"text": "t", "body": f"body {n}", "id": f"n{n}" if n else None}
    for n in range(3)
  ] + [{"text": "t", "body": None, "id": "n3"}]
  WRITERS[name](tmp_path / "in" / name, records)
  config = config_of(tmp_path / "in", tmp_path / "data", text_feature="body")
  corpus, plain = (
    load_corpus(config),
    load_corpus(config_of(tmp_path / "in", tmp_path / "data")),
  )
  ids = {d.text: d.id for d in corpus}
  assert set(ids) == {"body 0", "body 1", "body 2"}
  assert ids["body 2"] == f"{name}:n2"
  assert corpus.skipped.numbers == {"blank": 1}
  assert {d.text for d in plain} == {"t"}
  assert corpus.identity != plain.identity


def test_the_key_that_is_missing_is_told_of_every_file(tmp_path):
  (tmp_path / "in").mkdir()
  record = {"body": "text", "url": "there"}
  json_lines(tmp_path / "in" / "a.jsonl", [record])
  parquet(tmp_path / "in" / "b.parquet", [record])
  array_record(tmp_path / "in" / "c.array_record", [record])
  (tmp_path / "in" / "d.parquet").write_bytes(b"PAR1")
  config = config_of(tmp_path / "in", tmp_path / "data")
  for check in (content_hash, load_corpus):
    with pytest.raises(InputError) as caught:
      check(config)
    first, second, third, fourth = caught.value.problems
    assert first.endswith('a.jsonl, line 1: no "text"; it has body, url')
    assert second.endswith('b.parquet: no column "text"; it has body, url')
    assert third.endswith(
      'c.array_record, record 1: no "text"; it has body, url'
    )
    assert "d.parquet: damaged Parquet file (" in fourth
  assert not (tmp_path / "data").exists()


def cut(content):
  return content[: len(content) // 2]


@pytest.mark.parametrize(
  ("name", "damage", "message"),
  [
    ("a.jsonl.zst", cut, "damaged zstd file"),
    ("a.json.gz", cut, "damaged gzip file"),
    ("a.jsonl.zst", lambda _: b"{}", "damaged zstd file"),
    ("a.parquet", cut, "damaged Parquet file"),
    ("a.parquet", lambda c: c[:4] + bytes(400) + c[404:], "damaged Parquet"),
    ("a.arrow", cut, "damaged Arrow file"),
    ("a.arrow", lambda _: b"", "damaged Arrow file"),
    ("b.arrow", cut, "damaged Arrow file"),
    ("a.array_record", cut, "damaged ArrayRecord file"),
    ("a.array_record", lambda _: b"", "damaged ArrayRecord file"),
    (
      "a.json",
      lambda _: b'[\n{"text": "a"}\n]',
      "line 1: not JSON .*each line",
    ),
  ],
)
def test_a_damaged_file_is_named(tmp_path, name, damage, message):
  (tmp_path / "in").mkdir()
  records = [{"text": f"{n} " + text} for n, text in enumerate(DOCUMENTS * 9)]
  path = tmp_path / "in" / name
  WRITERS[name](path, records)
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(InputError, match=f"{name}.*{message}") as caught:
    load_corpus(config_of(named(path.parent, name), tmp_path / "data"))
  assert len(caught.value.problems) == 1
  assert not list((tmp_path / "data").glob("*/*/1.0.0"))


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ([1, 2], 'column "text" holds int64, not text'),
    ([["a"]], 'column "text" holds list<.*string>, not text'),
  ],
)
def test_a_column_of_another_type(tmp_path, values, message):
  (tmp_path / "in").mkdir()
  pq.write_table(pa.table({"text": values}), tmp_path / "in" / "a.parquet")
  with pytest.raises(InputError, match=message):
    load_corpus(config_of(tmp_path / "in", tmp_path / "data"))


def test_bytes_and_dictionaries_are_text(tmp_path):
  (tmp_path / "in").mkdir()
  texts = pa.array([b"one", b"caf\xe9", None, b"two"])
  pq.write_table(pa.table({"text": texts}), tmp_path / "in" / "a.parquet")
  named = pa.table({"text": pa.array(["one", "three"]).dictionary_encode()})
  pq.write_table(named, tmp_path / "in" / "b.parquet")
  corpus = load_corpus(config_of(tmp_path / "in", tmp_path / "data"))
  assert sorted(d.text for d in corpus) == ["one", "one", "three", "two"]
  assert corpus.skipped.numbers == {"not UTF-8": 1, "blank": 1}


def test_no_records_and_examples_are_told(tmp_path):
  (tmp_path / "in").mkdir()
  pq.write_table(
    pa.table({"text": pa.array([], pa.string())}), tmp_path / "in/a.parquet"
  )
  with pytest.raises(InputError, match="has no document"):
    load_corpus(config_of(tmp_path / "in", tmp_path / "data"))
  # tf.train.Example of {"text": bytes_list ["hello"]}.
  example = b"\n\x11\n\x0f\n\x04text\x12\x07\n\x05hello"
  writer = array_record_module.ArrayRecordWriter(
    str(tmp_path / "in" / "b.array_record"), "group_size:1"
  )
  writer.write(example)
  writer.close()
  with pytest.raises(InputError, match="record 1: a tf.train.Example"):
    load_corpus(config_of(tmp_path / "in", tmp_path / "data"))


def test_a_saved_dataset_that_lacks_a_file(tmp_path):
  saved_dataset(tmp_path / "in", [{"text": "a"}])
  (tmp_path / "in" / "data-00000-of-00001.arrow").unlink()
  with pytest.raises(InputError, match="00001.arrow, which .*state.json names"):
    load_corpus(config_of(tmp_path / "in", tmp_path / "data"))
  (tmp_path / "in" / "state.json").write_text("{}")
  with pytest.raises(InputError, match="state.json names no data files"):
    load_corpus(config_of(tmp_path / "in", tmp_path / "data"))


def test_a_key_of_files_without_keys(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "a.txt").write_text("text")
  with pytest.raises(InputError, match="text_feature 'body' is a key"):
    load_corpus(
      config_of(tmp_path / "in", tmp_path / "data", text_feature="body")
    )
