"""Catalogue names: prepared directories, builders, no TensorFlow, offline."""

import io
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import extractor

from jaxmerge.data import catalogue, corpora, tfds_adapter
from jaxmerge.data.config import CorpusConfig
from jaxmerge.data.corpora import load_corpus
from jaxmerge.errors import InputError


class _Handmade(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Texts in two splits; gone from TFDS's registry when it is read."""

  VERSION = tfds.core.Version("2.1.0")
  pkg_dir_path = None
  body = "body"
  with_id = True
  failure: Exception | None = None
  while_preparing: object = None

  def _info(self):
    features = {self.body: tfds.features.Text()}
    if self.with_id:
      features["id"] = tfds.features.Text()
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {
      "train": self._generate_examples(30),
      "test": self._generate_examples(4),
    }

  def _generate_examples(self, count):
    if self.while_preparing:
      self.while_preparing()
    if self.failure:
      raise self.failure
    for i in range(count):
      example = {self.body: f"text {i} of {count} é"}
      if self.with_id:
        example["id"] = f"name-{i}"
      yield i, example


def _variant(name, **attributes):
  with tfds.core.registered.skip_registration():
    return type(name, (_Handmade,), {"name": name, **attributes})


def _write(data_dir, name="handmade", **attributes):
  builder_class = _variant(name, **attributes)
  builder = builder_class(data_dir=data_dir, file_format="array_record")
  catalogue.prepare_builder(builder, [].append)
  return builder


def _load(name, data_dir, text_feature="text", split="", progress=print):
  config = CorpusConfig(
    source=name,
    data_dir=str(data_dir),
    text_feature=text_feature,
    split=split,
  )
  return load_corpus(config, progress=progress)


def test_a_prepared_directory_needs_no_builder_class(tmp_path):
  _write(tmp_path)
  corpus = _load("handmade", tmp_path, text_feature="body")
  assert len(corpus) == 30
  assert {d.id: d.text for d in corpus}["name-7"] == "text 7 of 30 é"
  test = _load("handmade:2.1.0", tmp_path, text_feature="body", split="test")
  assert len(test) == 4
  assert test.identity != corpus.identity


def test_without_an_id_the_text_gives_one(tmp_path):
  _write(tmp_path, with_id=False)
  corpus = _load("handmade", tmp_path, text_feature="body")
  documents = list(corpus)
  assert len({d.id for d in documents}) == 30
  other = tmp_path / "again"
  _write(other, with_id=False)
  again = _load("handmade", other, text_feature="body")
  assert list(again) == documents
  assert again.identity == corpus.identity


def test_other_content_is_another_corpus(tmp_path):
  _write(tmp_path / "a")

  def other(self, count):
    for i in range(count):
      yield i, {"body": f"tent {i} of {count} é", "id": f"name-{i}"}

  _write(tmp_path / "b", _generate_examples=other)
  identities = {
    _load("handmade", tmp_path / place, text_feature="body").identity
    for place in "ab"
  }
  assert len(identities) == 2


def test_long_shards_are_known_by_both_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(corpora, "_END_BYTES", 3)

  def identity(content):
    (tmp_path / "shard").write_bytes(content)
    return corpora._shard_identity(str(tmp_path / "shard"))

  whole = identity(b"abc.def")
  assert identity(b"Xbc.def") != whole
  assert identity(b"abc.deX") != whole
  assert identity(b"abc..def") != whole
  assert identity(b"abcd") != identity(b"abcX")


def test_the_text_features_are_named(tmp_path):
  _write(tmp_path)
  with pytest.raises(InputError, match="no text feature 'text'; it has body"):
    _load("handmade", tmp_path)


def test_tfrecord_is_refused(tmp_path):
  _write(tmp_path)
  info = tmp_path / "handmade" / "2.1.0" / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(InputError, match="prepared as tfrecord"):
    _load("handmade", tmp_path, text_feature="body")


@pytest.mark.parametrize("name", ["no_such_data", "no such", "../x", "a/b/c/d"])
def test_unknown_names(tmp_path, name):
  with pytest.raises(InputError, match="unknown source|not a name"):
    _load(name, tmp_path)


def test_an_unknown_config(tmp_path):
  with pytest.raises(InputError, match="wiki40b/zzzz"):
    _load("wiki40b/zzzz", tmp_path)


def test_offline_fails_fast_and_says_so(tmp_path, monkeypatch):
  asked = []

  def unreachable(request, timeout):
    asked.append(timeout)
    raise urllib.error.URLError("Name or service not known")

  monkeypatch.setattr(urllib.request, "urlopen", unreachable)
  with pytest.raises(InputError, match="input.txt cannot be reached"):
    _load("tiny_shakespeare", tmp_path)
  assert len(asked) == 1
  assert asked[0] <= 5
  assert not list(tmp_path.glob("tiny_shakespeare/1.0.0"))


def test_a_silent_network_is_waited_for_only_so_long(monkeypatch):
  monkeypatch.setattr(catalogue, "_REACH_SECONDS", 0.01)
  started = catalogue.threading.Event()
  monkeypatch.setattr(
    catalogue, "_reason_unreachable", lambda url: started.wait(5)
  )
  assert catalogue.why_unreachable("https://example.invalid/") == "no answer"
  started.set()


def test_any_answer_means_that_the_host_is_there(monkeypatch):
  def answer(request, timeout):
    raise urllib.error.HTTPError(request.full_url, 405, "no HEAD", None, None)

  monkeypatch.setattr(urllib.request, "urlopen", answer)
  assert catalogue.why_unreachable("https://example.invalid/") is None
  assert "without TensorFlow" in catalogue.why_unreachable("gs://bucket/file")


def test_manual_files_are_checked(tmp_path):
  manual = tmp_path / "downloads" / "manual"
  manual.mkdir(parents=True)
  (manual / "input.txt").write_text("not by Shakespeare")
  with pytest.raises(InputError, match="Checksum"):
    _load("tiny_shakespeare", tmp_path)


def test_a_catalogue_builder_is_built_from_manual_files(tmp_path, monkeypatch):
  """The real tiny_shakespeare builder, its checksum aside."""
  manual = tmp_path / "downloads" / "manual"
  manual.mkdir(parents=True)
  text = "".join(f"Line {i}.\n" for i in range(1000))
  (manual / "input.txt").write_text(text)
  monkeypatch.setattr(
    tfds.download.DownloadManager,
    "_register_or_validate_checksums",
    lambda self, *, url, url_info, path: None,
  )
  said = []
  corpus = _load("tiny_shakespeare", tmp_path, progress=said.append)
  (document,) = corpus
  assert document.text == text[: int(len(text) * 0.9)]
  assert said == ["preparing tiny_shakespeare/1.0.0"]
  assert "tensorflow" not in sys.modules


def test_a_builder_that_fails_leaves_nothing(tmp_path, capsys):
  with pytest.raises(InputError, match="cannot be prepared here: .*KeyError"):
    _write(tmp_path, failure=KeyError("broken"))
  assert not (tmp_path / "handmade" / "2.1.0").exists()
  assert not list((tmp_path / "handmade").iterdir())
  assert capsys.readouterr().out == ""


def test_the_faster_process_wins(tmp_path):
  """A second process finishes while the first is still writing."""
  _write(tmp_path, while_preparing=lambda self: _write(tmp_path))
  assert len(_load("handmade", tmp_path, text_feature="body"))


def test_archives_are_extracted_without_tensorflow(tmp_path):
  archive = tmp_path / "a.tar.gz"
  with tarfile.open(archive, "w:gz") as tar:
    member = tarfile.TarInfo("inner/file.txt")
    member.size = 5
    tar.addfile(member, io.BytesIO(b"hello"))
  original = extractor.tf
  with tfds_adapter.without_tensorflow(object()):
    assert extractor.tf is not original
    tool = extractor.get_extractor()
    with tool.tqdm():
      method = tfds.download.ExtractMethod.TAR_GZ
      out = tool.extract(archive, method, tmp_path / "out").get()
  assert (out / "inner" / "file.txt").read_text() == "hello"
  assert extractor.tf is original
  assert "tensorflow" not in sys.modules


def test_importing_the_room_loads_no_tensorflow_and_starts_no_backend():
  program = """
import sys
from jaxmerge.data import cache, corpora, heldout, pipeline
from jax._src import xla_bridge
assert "tensorflow" not in sys.modules
assert "gpjax" not in sys.modules
assert not xla_bridge._backends
"""
  subprocess.run([sys.executable, "-c", program], check=True)
